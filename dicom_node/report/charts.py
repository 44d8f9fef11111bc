"""A model's numbers on the summary page: its table, and its histogram with axes and marks."""

import math
from collections.abc import Iterator

from PIL import ImageDraw

from dicom_node.report.fonts import bundled
from dicom_node.report.planes import REGION_COLOUR
from dicom_node.report.typesetting import Box, Colour, text
from inference.plug import Histogram, Table

WHITE, GREY, FAINT, BACKGROUND = (240, 240, 240), (165, 165, 165), (70, 70, 70), (12, 14, 18)
_BAR = (110, 150, 185)
_ROW_PX, _HEAD_PX, _CELL_PX, _UNIT_PX = 22, 36, 16, 13
_LABEL_PX, _LINE_PX = 13, 17
_LEFT_PX, _BELOW_PX = 34, 38
_MOST_MARKS = 3
_MOST_STEPS = 5


def table_height(table: Table) -> int:
    """How much of the page a table takes, pixels."""
    return _HEAD_PX + _ROW_PX * len(table.rows) + 10


def draw_table(draw: ImageDraw.ImageDraw, box: Box, table: Table) -> None:
    """Draw a table from the top of a box: its first column to the left, the others to the right of their width."""
    widths = _widths(draw, box, table)
    ends = [box.x + sum(widths[: n + 1]) for n in range(len(widths))]
    for end, width, (name, unit) in zip(ends, widths, table.columns, strict=True):
        text(draw, (end, box.y), name, _UNIT_PX, GREY, width - 4, anchor="ra")
        text(draw, (end, box.y + 16), unit, _UNIT_PX, GREY, width - 4, anchor="ra")
    y = box.y + _HEAD_PX
    draw.line((box.x, y - 2, box.x + box.width, y - 2), fill=FAINT)
    for number, row in enumerate(table.rows):
        colour: Colour = WHITE if number else REGION_COLOUR
        text(draw, (box.x, y), row[0], _CELL_PX, colour, widths[0] - 4)
        for end, width, cell in zip(ends[1:], widths[1:], row[1:], strict=True):
            text(draw, (end, y), cell, _CELL_PX, colour, width - 4, anchor="ra")
        y += _ROW_PX


def _widths(draw: ImageDraw.ImageDraw, box: Box, table: Table) -> list[int]:
    """The widths of the columns: what their texts need, and the rest of the box shared out evenly."""
    needed = []
    for number, (name, unit) in enumerate(table.columns):
        cells = [draw.textlength(row[number][:64], font=bundled(_CELL_PX)) for row in table.rows]
        heads = [draw.textlength(words[:64], font=bundled(_UNIT_PX)) for words in (name, unit)]
        needed.append(max(*cells, *heads) + 6)
    spare = box.width - sum(needed)
    if spare >= 0:
        return [int(width + spare / len(needed)) for width in needed]
    return [int(width * box.width / sum(needed)) for width in needed]


def draw_histogram(draw: ImageDraw.ImageDraw, box: Box, histogram: Histogram) -> None:
    """Draw a histogram with its title, labelled axes and marks, as large as a box."""
    text(draw, (box.x, box.y), histogram.title, _LABEL_PX, WHITE, box.width)
    marks = _marks(histogram)
    top = box.y + _LINE_PX * (1 + len(marks)) + 6
    plot = Box(box.x + _LEFT_PX, top, box.width - _LEFT_PX - 18, box.y + box.height - _BELOW_PX - top)
    highest = 1.05 * max(histogram.counts) or 1.0
    _vertical_axis(draw, plot, highest, histogram.count_unit)
    _bars(draw, plot, histogram, highest)
    _horizontal_axis(draw, plot, histogram)
    for number, (value, _) in enumerate(marks):
        x = _x_of(value, plot, histogram)
        draw.line((x, _label_y(box, number) + 2, x, plot.y + plot.height), fill=WHITE, width=1)
    for number, (value, label) in enumerate(marks):
        _label(draw, box, _x_of(value, plot, histogram), _label_y(box, number), label)


def _label_y(box: Box, number: int) -> int:
    return box.y + _LINE_PX * (1 + number) + 4


def _label(draw: ImageDraw.ImageDraw, box: Box, x: int, y: int, label: str) -> None:
    """The words of a mark to the right of its line, or to the left if there is more room. They hide other lines."""
    to_right = x < box.x + box.width // 2
    room = (box.x + box.width - x if to_right else x - box.x) - 6
    at, anchor = (x + 6 if to_right else x - 6, y), "la" if to_right else "ra"
    left, top, right, bottom = draw.textbbox(at, label[:64], font=bundled(_LABEL_PX), anchor=anchor)
    ends = max(box.x, left - 1), min(box.x + box.width, right + 1)
    draw.rectangle((ends[0], top - 1, ends[1], bottom + 1), fill=BACKGROUND)
    text(draw, at, label, _LABEL_PX, WHITE, room, anchor=anchor)


def _marks(histogram: Histogram) -> list[tuple[float, str]]:
    """Those that lie on the axis, the last first."""
    low, high = histogram.edges[0], histogram.edges[-1]
    return sorted((mark for mark in histogram.marks if low <= mark[0] <= high), reverse=True)[:_MOST_MARKS]


def _x_of(value: float, plot: Box, histogram: Histogram) -> int:
    low, high = histogram.edges[0], histogram.edges[-1]
    return plot.x + round((value - low) / (high - low) * plot.width)


def _bars(draw: ImageDraw.ImageDraw, plot: Box, histogram: Histogram, highest: float) -> None:
    foot = plot.y + plot.height
    for left, right, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        height = round(count / highest * plot.height)
        if height:
            start, end = _x_of(left, plot, histogram), _x_of(right, plot, histogram)
            colour = REGION_COLOUR if _is_highlighted(histogram, left, right) else _BAR
            draw.rectangle((start, foot - height, max(start, end - 1), foot), fill=colour)


def _is_highlighted(histogram: Histogram, left: float, right: float) -> bool:
    return histogram.highlight is not None and histogram.highlight[0] <= left and right <= histogram.highlight[1]


def _vertical_axis(draw: ImageDraw.ImageDraw, plot: Box, highest: float, unit: str) -> None:
    for value in _multiples(0.0, highest, _nice(highest / _MOST_STEPS)):
        y = plot.y + plot.height - round(value / highest * plot.height)
        draw.line((plot.x, y, plot.x + plot.width, y), fill=FAINT)
        text(draw, (plot.x - 5, y), f"{value:g}", _LABEL_PX, GREY, _LEFT_PX, anchor="rm")
    text(draw, (plot.x - 5, plot.y - _LINE_PX + 2), unit, _LABEL_PX, GREY, _LEFT_PX, anchor="rm")


def _horizontal_axis(draw: ImageDraw.ImageDraw, plot: Box, histogram: Histogram) -> None:
    foot = plot.y + plot.height
    draw.line((plot.x, foot, plot.x + plot.width, foot), fill=GREY)
    low, high = histogram.edges[0], histogram.edges[-1]
    step = _nice((high - low) / _MOST_STEPS)
    for value in _multiples(low, high, step):
        x = _x_of(value, plot, histogram)
        draw.line((x, foot, x, foot + 4), fill=GREY)
        text(draw, (x, foot + 5), f"{value:g}", _LABEL_PX, GREY, 60, anchor="ma")
    middle = plot.x + plot.width // 2
    text(draw, (middle, foot + 5 + _LINE_PX), histogram.unit, _LABEL_PX, GREY, plot.width, anchor="ma")


def _nice(rough: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below a step."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _multiples(low: float, high: float, step: float) -> Iterator[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    for number in range(first, last + 1):
        yield number * step
