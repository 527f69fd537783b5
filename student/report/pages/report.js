"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

// Steps that have a point on some chart, in order: where the cursor can stand.
const steps = [...new Set(data.charts.flatMap((chart) => chart.lines.flatMap((line) => line.steps)))];
steps.sort((a, b) => a - b);

const place = (scale, value) => {
  const share = scale.high > scale.low ? (value - scale.low) / (scale.high - scale.low) : 0.5;
  return scale.start + share * (scale.end - scale.start);
};

/** The index of the entry of a rising list that is closest to a value. */
function nearest(list, value) {
  let low = 0;
  let high = list.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - list[low - 1] <= list[low] - value ? low - 1 : low;
}

/** A number with four digits that count. */
function words(value) {
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return size >= 1000 ? value.toFixed(0) : value.toPrecision(4);
}

const views = [...document.querySelectorAll("figure[data-chart]")].map((figure) => {
  const chart = data.charts[Number(figure.dataset.chart)];
  const svg = figure.querySelector("svg");
  const marks = chart.lines.map((line) => {
    const mark = document.createElementNS(SVG, "circle");
    mark.setAttribute("r", "4");
    mark.setAttribute("class", line.class);
    svg.append(mark);
    return mark;
  });
  return { chart, svg, marks, cursor: svg.querySelector(".cursor"), output: figure.querySelector("output") };
});

let current = steps.length - 1;

function readings(chart, step) {
  return chart.lines.map((line) => {
    const at = nearest(line.steps, step);
    return { name: line.name ?? data.names[line.run], step: line.steps[at], value: line.values[at] };
  });
}

function sentence(found) {
  if (data.names.length === 1 && found.length === 1) return `${words(found[0].value)} at step ${found[0].step.toLocaleString("en")}`;
  const step = found[0].step;
  const parts = found.map((one) => `${one.name} ${words(one.value)}${one.step === step ? "" : ` (step ${one.step})`}`);
  return `step ${step.toLocaleString("en")}: ${parts.join(" · ")}`;
}

function show(index) {
  current = Math.min(Math.max(index, 0), steps.length - 1);
  const step = steps[current];
  for (const { chart, svg, marks, cursor, output } of views) {
    const found = readings(chart, step);
    const x = place(chart.x, found[0].step);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    marks.forEach((mark, at) => {
      mark.setAttribute("cx", place(chart.x, found[at].step));
      mark.setAttribute("cy", place(chart.y, found[at].value));
    });
    const text = sentence(found);
    output.textContent = text;
    svg.setAttribute("aria-valuenow", step);
    svg.setAttribute("aria-valuetext", text);
  }
}

function stepAt(chart, svg, event) {
  const box = svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * data.width;
  const share = (x - chart.left) / (chart.right - chart.left);
  return chart.x.low + share * (chart.x.high - chart.x.low);
}

const MOVES = {
  ArrowRight: () => current + 1,
  ArrowUp: () => current + 1,
  ArrowLeft: () => current - 1,
  ArrowDown: () => current - 1,
  PageUp: () => current + 10,
  PageDown: () => current - 10,
  Home: () => 0,
  End: () => steps.length - 1,
};

for (const { chart, svg } of views) {
  svg.setAttribute("role", "slider");
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("aria-valuemin", steps[0]);
  svg.setAttribute("aria-valuemax", steps[steps.length - 1]);
  svg.addEventListener("pointermove", (event) => show(nearest(steps, stepAt(chart, svg, event))));
  svg.addEventListener("pointerdown", (event) => show(nearest(steps, stepAt(chart, svg, event))));
  svg.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !MOVES[event.key]) return;
    event.preventDefault();
    show(MOVES[event.key]());
  });
}
if (views.length) show(current);
