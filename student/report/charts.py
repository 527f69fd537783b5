"""A report's charts as SVG; the page's style sheet gives lines their colours."""

from collections.abc import Sequence

from delta_common.html.markup import Markup, element
from delta_common.html.svg import Scale, round_ticks, svg_points
from student.report.series import Chart

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 32


def figure(chart: Chart, number: int) -> Markup:
    """A chart under its name and note, with an empty `output` that the page's script fills with values pointed at."""
    caption = element("figcaption", element("b", chart.measure.name), " ", chart.measure.note, element("output"))
    caches = legend(chart.caches, "Caches") if chart.caches else None
    return element("figure", caption, _svg(chart), caches, data_chart=number)


def legend(names: Sequence[str], label: str) -> Markup:
    """Names beside their lines' colours and dashes."""
    entries = []
    for number, name in enumerate(names):
        stroke = element("line", x1=1, x2=33, y1=6, y2=6, class_=line_class(number))
        swatch = element("svg", stroke, viewBox="0 0 34 12", aria_hidden="true", class_="swatch")
        entries.append(element("li", swatch, element("bdi", name)))
    return element("ul", *entries, class_="runs", aria_label=label)


def axes(chart: Chart) -> tuple[Scale, Scale]:
    """Steps across, values up."""
    steps, ticks = [step for line in chart.lines for step in line.steps], _ticks(chart)
    x = Scale(min(0, *steps), max(steps), LEFT, WIDTH - RIGHT)
    return x, Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)


def _ticks(chart: Chart) -> list[float]:
    values = [value for line in chart.lines for value in line.values]
    return round_ticks(min(values), max(values))


def _svg(chart: Chart) -> Markup:
    x, y = axes(chart)
    lines = [
        element(
            "polyline",
            points=svg_points(zip(line.steps, line.values, strict=True), x, y),
            class_=line_class(line.number),
        )
        for line in chart.lines
    ]
    dots = [
        element("circle", cx=x(step), cy=y(value), r=3, class_=line_class(line.number))
        for line in chart.lines
        if chart.measure.source == "evaluations" or len(line.steps) == 1
        for step, value in zip(line.steps, line.values, strict=True)
    ]
    return element(
        "svg",
        *(_across(y(tick), f"{tick:.6g}") for tick in _ticks(chart)),
        *(_below(x(tick), f"{tick:,.6g}") for tick in round_ticks(x.low, x.high, 4) if tick <= x.high),
        *lines,
        *dots,
        element("line", y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor", visibility="hidden"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.measure.name} over steps",
    )


def line_class(run: int) -> str:
    """Colour and dashes of a run's lines; six colours, then again with other dashes."""
    return f"run colour-{run % 6} dashes-{run // 6 % 3}"


def _across(y: float, words: str) -> Markup:
    label = element("text", words, x=LEFT - 8, y=y + 4, text_anchor="end")
    return Markup(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid") + label)


def _below(x: float, words: str) -> Markup:
    return element("text", words, x=x, y=HEIGHT - 10, text_anchor="middle")
