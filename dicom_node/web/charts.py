"""Charts as numbers for a template: where each bar begins and how high it is. Drawn as SVG without a script."""

from collections.abc import Sequence
from dataclasses import dataclass

HEIGHT, LENGTH = 100.0, 300.0
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Bar:
    """A part of a column: what it stands for, and its place in a picture that is HEIGHT high."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True)
class Chart:
    """columns: the bars of each, from below. top: the number at the upper edge."""

    columns: tuple[tuple[Bar, ...], ...]
    top: int


def stacked(rows: Sequence[Sequence[tuple[str, int]]]) -> Chart:
    """A chart of columns of parts, each a kind and a number."""
    top = round_up(max((sum(number for _, number in row) for row in rows), default=0))
    columns = []
    for row in rows:
        below, bars = 0, []
        for kind, number in row:
            if number:
                below += number
                bars.append(Bar(kind, round(HEIGHT * (1 - below / top), 3), round(HEIGHT * number / top, 3)))
        columns.append(tuple(bars))
    return Chart(tuple(columns), top)


@dataclass(frozen=True)
class Line:
    """A line from left to right, in a picture that is LENGTH long and HEIGHT high.

    points: for a polyline of SVG.  limit_y: of the threshold; None if there is none.
    """

    points: str
    limit_y: float | None


def line(values: Sequence[float], limit: float | None) -> Line:
    """A line through values at equal steps, with a threshold; between the least and the largest of all of them, and 0.

    values: at least one.
    """
    seen = [*values, 0.0, *([] if limit is None else [limit])]
    low, high = min(seen), max(seen)
    span = high - low or 1.0
    step = LENGTH / max(1, len(values) - 1)
    heights = [round(HEIGHT * (1 - (value - low) / span), 2) for value in values]
    points = " ".join(f"{round(step * number, 2)},{y}" for number, y in enumerate(heights))
    return Line(points, None if limit is None else round(HEIGHT * (1 - (limit - low) / span), 2))


def round_up(number: int) -> int:
    """The next of 4, 10, 20, 50, 100, ...: what an axis may end with."""
    if number <= 4:
        return 4
    scale = 1
    while True:
        for step in STEPS:
            if number <= step * scale and step * scale >= 10:
                return step * scale
        scale *= 10
