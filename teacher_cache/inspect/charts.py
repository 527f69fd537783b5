"""Charts as SVG: colours come from the page's style, labels are text."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from delta_common.html.markup import Markup, element, join
from delta_common.html.svg import Scale, svg_points
from teacher_cache.inspect.curves import Curve
from teacher_cache.inspect.shards import ShardFigure

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34

STRIP_WIDTH, STRIP_HEIGHT = 360, 34
STRIP_MARGIN, DOT_STEP = 8, 4
DOTS_ABOVE = 3


def line_chart(
    temperatures: Sequence[float], curve: Curve, reported: dict[str, float | None], label: str, *, percent: bool
) -> Markup:
    """A measure over T: line and band are mean and 10 % to 90 % of a sample; dots are means of all positions."""
    points = {float(t): value for t, value in reported.items() if value is not None}
    highest = max(*curve.high.tolist(), *points.values(), 0.0)
    ticks = [0, 0.25, 0.5, 0.75, 1] if percent else _ticks(highest)
    x = Scale(min(temperatures), max(temperatures), LEFT, WIDTH - RIGHT)
    y = Scale(0, ticks[-1], HEIGHT - BOTTOM, TOP)
    outline = [*zip(temperatures, curve.high, strict=True), *reversed([*zip(temperatures, curve.low, strict=True)])]
    mean = [*zip(temperatures, curve.mean, strict=True)]
    return element(
        "svg",
        *(_tick(y(tick), f"{tick:.0%}" if percent else f"{tick:g}") for tick in ticks),
        *(_temperature_tick(x(t), f"{t:g}") for t in _temperature_ticks(temperatures)),
        element("polygon", points=svg_points(outline, x, y), class_="band"),
        element("polyline", points=svg_points(mean, x, y), class_="line"),
        *(element("circle", cx=x(t), cy=y(value), r=4, class_="dot") for t, value in points.items()),
        element(
            "line",
            x1=LEFT,
            x2=LEFT,
            y1=TOP,
            y2=HEIGHT - BOTTOM,
            class_="cursor",
            data_left=LEFT,
            data_right=WIDTH - RIGHT,
        ),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
    )


def _ticks(highest: float) -> list[float]:
    """0 and a few round steps up to at least `highest`."""
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if highest / s <= 5 or s == 100)
    return [round(step * n, 6) for n in range(int(np.ceil(max(highest, step) / step)) + 1)]


def _temperature_ticks(temperatures: Sequence[float]) -> list[float]:
    low, high = min(temperatures), max(temperatures)
    return [round(float(t), 3) for t in np.linspace(low, high, 5 if high > low else 1)]


def _tick(y: float, words: str) -> Markup:
    line = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
    return join(line, element("text", words, x=LEFT - 8, y=y + 4, text_anchor="end"))


def _temperature_tick(x: float, words: str) -> Markup:
    return element("text", words, x=x, y=HEIGHT - 12, text_anchor="middle")


def share_bar(share: float) -> Markup:
    """A bar whose length is a share (0 to 1) of the full width."""
    filled = element("rect", x=0, y=2, width=round(200 * share, 2), height=10, class_="bar")
    return element("svg", filled, viewBox="0 0 200 14", aria_hidden="true", class_="share", preserveAspectRatio="none")


def strip(figure: ShardFigure) -> Markup:
    """One dot per shard along the figure's range, equal ones stacked; shards that stand out are marked and named."""
    values = figure.values
    x = Scale(min(values.values()), max(values.values()), STRIP_MARGIN, STRIP_WIDTH - STRIP_MARGIN)
    middle = STRIP_HEIGHT / 2
    stacked: Counter[int] = Counter()
    dots = []
    for shard, value in sorted(values.items(), key=lambda item: (item[0] in figure.outliers, item[0])):
        column = round(x(value) / DOT_STEP)
        level = stacked[column]
        stacked[column] += 1
        unusual = shard in figure.outliers
        if level <= 2 * DOTS_ABOVE or unusual:
            height = min((level + 1) // 2, DOTS_ABOVE) * DOT_STEP * (-1 if level % 2 else 1)
            title = element("title", f"shard {shard}: {figure.words(value)}")
            dots.append(
                element(
                    "circle",
                    title,
                    cx=x(value),
                    cy=middle + height,
                    r=4 if unusual else 2.6,
                    class_="dot unusual" if unusual else "dot",
                )
            )
    median = element("line", x1=x(figure.median), x2=x(figure.median), y1=3, y2=STRIP_HEIGHT - 3, class_="median")
    label = f"{figure.name} of {len(values)} shards, from {figure.words(min(values.values()))} to " + figure.words(
        max(values.values())
    )
    box = f"0 0 {STRIP_WIDTH} {STRIP_HEIGHT}"
    return element("svg", median, *dots, viewBox=box, role="img", aria_label=label, class_="strip")
