"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const betas = data.nodes.map((temperature) => 1 / temperature);

const LEVELS = [0.5, 0.2, 0.05, 0.01, 0.001];
const LEVEL_WORDS = ["50% and more", "20%", "5%", "1%", "0.1%", "less"];
const CONTEXT_TOKENS = 8;
const CHOICES_LISTED = 12;

// The teacher at a temperature, by the formulas of docs/format.md; logits are relative to the largest.

/** Weights w(β) of the polynomial through the nodes: A(β) = Σ w A(β_j). */
function interpolationWeights(beta) {
  return betas.map((own, j) =>
    betas.reduce((product, other, m) => (m === j ? product : (product * (beta - other)) / (own - other)), 1));
}

/** Weights of its derivative: A′(β) = Σ w′ A(β_j). */
function derivativeWeights(beta) {
  return betas.map((own, j) =>
    betas.reduce((sum, left, out) => {
      if (out === j) return sum;
      const others = betas.reduce(
        (product, other, m) => (m === j || m === out ? product : (product * (beta - other)) / (own - other)), 1);
      return sum + others / (own - left);
    }, 0));
}

const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);

/** Z(T) and what stands outside the top_k. */
function partition(position, temperature) {
  const outside = Math.exp(dot(interpolationWeights(1 / temperature), position.log_mass));
  const top = position.logits.slice(0, data.top_k);
  return { outside, z: top.reduce((sum, logit) => sum + Math.exp(logit / temperature), 0) + outside };
}

/** π of the entries: 1 in the top_k, min(1, n r) behind it. */
function inclusion(position) {
  const scales = data.proposal.map(([temperature, share]) => ({
    temperature,
    scale: (data.samples * share) / partition(position, temperature).z,
  }));
  const rate = (logit) =>
    scales.reduce((sum, part) => sum + part.scale * Math.exp(logit / part.temperature), 0);
  return position.logits.map((logit, at) => (at < data.top_k ? 1 : Math.min(1, rate(logit))));
}

/** Everything the page says of one position at T. */
function distribution(position, temperature) {
  const { outside, z } = partition(position, temperature);
  const p = position.logits.map((logit) => Math.exp(logit / temperature) / z);
  const rest = outside / z;
  const top = p.slice(0, data.top_k);
  const sampled = p.slice(data.top_k).reduce((sum, chance) => sum + chance, 0);
  const slope = dot(derivativeWeights(1 / temperature), position.log_mass);
  const entropy = Math.log(z) - (dot(top, position.logits.slice(0, top.length)) + rest * slope) / temperature;
  return { p, rest, sampled, entropy, next: chanceOfNext(position, temperature, z, rest - sampled, rest) };
}

/** Probability of the token that follows; where it was not kept, the most it can be. */
function chanceOfNext(position, temperature, z, unseen, rest) {
  if (position.next !== null) return { chance: Math.exp(position.next / temperature) / z, known: true };
  const highest = Math.exp(position.ceiling / temperature) / z;
  return { chance: unseen > 0.001 * rest ? Math.min(highest, unseen) : highest, known: false };
}

// Words.

/** A share in per cent, with two or three digits. */
function percent(chance) {
  const share = 100 * chance;
  if (share >= 9.95) return `${share.toFixed(1)}%`;
  return share >= 0.095 ? `${share.toFixed(2)}%` : `${share.toPrecision(2)}%`;
}
const plain = (chance) => (chance >= 0.0995 ? chance.toFixed(3) : chance.toPrecision(2));
const textOf = (token) => data.texts[token];
const visible = (token) => textOf(token).replaceAll("⏎\n", "⏎").replaceAll(" ", "␣");

/** An element with attributes and children; strings become text, never markup. */
function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A number as words, with its precise value for programs. */
const quantity = (value, words) => make("data", { value: value.toPrecision(9) }, words);

// The text.

const rowsElement = document.getElementById("rows");
const slider = document.getElementById("temperature");
const tokens = [];
let chosen = null;
let shown = null;

function makeRow(row) {
  const title = make("span", { class: "row-title", role: "presentation" }, `Row ${row.row}`);
  const text = make("div", { class: data.has_text ? "tokens" : "tokens ids", role: "presentation" });
  row.tokens.forEach((token, at) => {
    const position = at ? row.positions[at - 1] : null;
    const roles = { role: "option", tabindex: "-1", "aria-selected": "false" };
    const element = make("span", { ...roles, class: "token" }, textOf(token));
    if (row.starts.includes(at)) element.classList.add("starts");
    if (!position) element.classList.add("uncounted");
    if (at && row.roles) element.dataset.role = row.roles[at - 1];
    const entry = { element, row, at, token, position };
    element.addEventListener("pointerenter", () => show(entry));
    element.addEventListener("focus", () => choose(entry));
    element.addEventListener("click", () => element.focus());
    tokens.push(entry);
    text.append(element);
  });
  const group = make("div", { role: "group", class: "row", "aria-label": `Row ${row.row}` }, title, text);
  text.addEventListener("pointerleave", () => chosen && show(chosen));
  return group;
}

function choose(entry) {
  if (chosen) {
    chosen.element.tabIndex = -1;
    chosen.element.setAttribute("aria-selected", "false");
  }
  chosen = entry;
  entry.element.tabIndex = 0;
  entry.element.setAttribute("aria-selected", "true");
  show(entry);
}

/** The token in the next line of text, up or down, that stands closest. */
function neighbour(step) {
  const here = chosen.element.getClientRects()[0];
  let best = null;
  for (const entry of tokens) {
    const place = entry.element.getClientRects()[0];
    const down = step * (place.top - here.top);
    if (down < here.height / 2) continue;
    const distance = down * 1000 + Math.abs(place.left - here.left);
    if (best === null || distance < best.distance) best = { entry, distance };
  }
  return best ? best.entry : chosen;
}

function goTo(key) {
  const at = tokens.indexOf(chosen);
  const row = tokens.filter((entry) => entry.row === chosen.row);
  const targets = {
    ArrowRight: () => tokens[Math.min(at + 1, tokens.length - 1)],
    ArrowLeft: () => tokens[Math.max(at - 1, 0)],
    ArrowDown: () => neighbour(1),
    ArrowUp: () => neighbour(-1),
    Home: () => row[0],
    End: () => row[row.length - 1],
  };
  return targets[key] ? targets[key]() : null;
}

rowsElement.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const target = goTo(event.key);
  if (!target) return;
  event.preventDefault();
  target.element.focus();
});

function tint(temperature) {
  for (const { element, position } of tokens) {
    if (!position) continue;
    const { chance, known } = distribution(position, temperature).next;
    const level = LEVELS.findIndex((least) => chance >= least);
    element.dataset.level = level < 0 ? LEVELS.length : level;
    element.classList.toggle("bound", !known);
  }
}

function makeLegend() {
  const legend = document.getElementById("legend");
  const swatch = (attributes, text, words) =>
    legend.append(make("li", {}, make("span", { ...attributes, "aria-hidden": "true" }, text), words));
  LEVEL_WORDS.forEach((words, level) => swatch({ class: "token", "data-level": level }, "  ", words));
  swatch({ class: "token bound" }, "abc", "not kept: less likely than its tint");
  swatch({ class: "token uncounted" }, "abc", "not counted");
  const roles = new Set(data.rows.flatMap((row) => row.roles ?? []));
  for (const role of ["system", "user", "assistant", "tool"]) {
    if (roles.has(role)) swatch({ class: "token", "data-role": role }, "abc", role);
  }
}

// The panel.

function show(entry) {
  shown = entry;
  const temperature = Number(slider.value);
  const headline = document.getElementById("headline");
  const details = document.getElementById("details");
  for (const { element } of tokens) element.classList.toggle("shown", element === entry.element);
  if (!entry.position) {
    const role = entry.element.dataset.role;
    const whose = role && role !== "padding" ? ` (${role})` : "";
    const reason = entry.at
      ? `${whose} is not counted: nothing is cached for it.`
      : " comes first: its own distribution is not on this page.";
    headline.replaceChildren(word(entry.token), reason);
    details.replaceChildren();
    return;
  }
  const found = distribution(entry.position, temperature);
  headline.replaceChildren(word(entry.token), ...surpriseWords(found.next));
  details.replaceChildren(context(entry), choices(entry, found), sampledEntries(entry, found));
}

const word = (token) => make("b", { class: "word" }, make("bdi", {}, visible(token)));

function surpriseWords({ chance, known }) {
  const nats = -Math.log(chance);
  const probability = quantity(chance, percent(chance));
  const surprise = quantity(nats, nats.toFixed(2));
  probability.className = "chance";
  return known
    ? [" had ", probability, ": a surprise of ", surprise, " nats"]
    : [" was not kept: at most ", probability, ", a surprise of at least ", surprise, " nats"];
}

function context({ row, at }) {
  const before = row.tokens.slice(Math.max(0, at - CONTEXT_TOKENS), at).map(textOf).join("").replaceAll("\n", "");
  const place = `Position ${row.first + at - 1} of row ${row.row}, after `;
  return make("p", { class: "context" }, place, make("q", {}, make("bdi", {}, before)));
}

function choices(entry, found) {
  const { position, token } = entry;
  const top = found.p.slice(0, data.top_k);
  const body = make("tbody");
  const line = (chance, at) => entryLine(position.ids[at], token, [quantity(chance, percent(chance)), bar(chance)]);
  body.append(...top.slice(0, CHOICES_LISTED).map(line));
  const behind = top.slice(CHOICES_LISTED);
  const caption = make("caption", {}, "First choices");
  const table = make("table", { class: "choices" }, caption, heading(["token", "p", ""]), body);
  const others = behind.reduce((sum, chance) => sum + chance, 0);
  const more = behind.length ? [`the next ${behind.length} `, quantity(others, percent(others)), ", "] : [];
  const rest = make("p", { class: "rest" }, ...more, "outside them ", quantity(found.rest, percent(found.rest)),
    ", entropy ", quantity(found.entropy, found.entropy.toFixed(2)), " nats");
  return make("div", {}, table, rest);
}

function sampledEntries(entry, found) {
  const { position, token } = entry;
  const first = Math.min(data.top_k, position.ids.length);
  if (!data.samples) return make("p", { class: "rest" }, "Nothing is sampled in this cache.");
  if (first === position.ids.length) return make("p", { class: "rest" }, "No entry was drawn here.");
  const included = inclusion(position);
  const body = make("tbody");
  for (let at = first; at < position.ids.length; at += 1) {
    const weight = found.p[at] / included[at];
    body.append(entryLine(position.ids[at], token, [
      quantity(found.p[at], percent(found.p[at])),
      quantity(included[at], plain(included[at])),
      quantity(weight, weight.toFixed(4)),
    ]));
  }
  const count = position.ids.length - first;
  const caption = make("caption", {}, `${count} sampled: drawn with probability π, counted with weight p/π`);
  const table = make("table", { class: "sampled" }, caption, heading(["token", "p", "π", "p/π"]), body);
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Sampled entries" }, table);
}

const heading = (words) => make("thead", {}, make("tr", {}, ...words.map((w) => make("th", { scope: "col" }, w))));

function entryLine(id, next, cells) {
  const name = make("th", { scope: "row" }, make("bdi", {}, visible(id)));
  const line = make("tr", {}, name, ...cells.map((cell) => make("td", {}, cell)));
  if (id === next) {
    line.className = "next";
    name.append(make("span", { class: "mark" }, " ← next"));
  }
  return line;
}

function bar(chance) {
  const made = make("span", { class: "meter", "aria-hidden": "true" });
  made.style.width = `${(100 * chance).toFixed(2)}%`;
  return make("span", { class: "meter-room" }, made);
}

// The temperature.

function readCurve(values, temperature) {
  const grid = data.curves.temperatures;
  const place = ((temperature - grid[0]) / (grid[grid.length - 1] - grid[0])) * (grid.length - 1);
  const left = Math.min(Math.max(Math.floor(place), 0), grid.length - 2);
  return values[left] + (place - left) * (values[left + 1] - values[left]);
}

function moveCursors(temperature) {
  const share = (temperature - data.lowest) / (data.highest - data.lowest);
  for (const cursor of document.querySelectorAll(".cursor")) {
    const left = Number(cursor.dataset.left);
    const x = left + share * (Number(cursor.dataset.right) - left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  }
  for (const output of document.querySelectorAll("output[data-measure]")) {
    const value = readCurve(data.curves[output.dataset.measure], temperature);
    const words = output.dataset.measure === "entropy" ? value.toFixed(2) : percent(value);
    output.textContent = `${words} at T = ${temperature.toFixed(2)}`;
  }
}

function setTemperature() {
  const temperature = Number(slider.value);
  document.getElementById("chosen").textContent = `T = ${temperature.toFixed(2)}`;
  slider.setAttribute("aria-valuetext", `T = ${temperature.toFixed(2)}`);
  tint(temperature);
  moveCursors(temperature);
  if (shown) show(shown);
}

makeLegend();
if (data.rows.length) rowsElement.append(...data.rows.map(makeRow));
else document.querySelector(".reading").replaceWith(make("p", {}, "No row is built yet."));
const opening = tokens.find((entry) => entry.position) ?? tokens[0];
if (opening) choose(opening);
slider.addEventListener("input", setTemperature);
setTemperature();
