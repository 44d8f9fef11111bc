"""Text on the summary page: broken into lines, shortened to fit, set as large as there is room."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageDraw

from dicom_node.report.fonts import Font, bundled, font_for

Colour = tuple[int, int, int]
Paragraph = tuple[str, int, Colour]
"""Text, size in pixels and colour."""

MOST_CHARACTERS = 1200
"""Longest text that is measured. A page holds less, and measuring takes time in proportion to the length."""
_GAP_PX = 7
_MOST_LARGER_PX, _MOST_SMALLER_PX = 3, 4
_OUTLINE = (0, 0, 0)

LEFT_OUT = "… more than this page holds: the rest is in the report."


@dataclass(frozen=True)
class Box:
    """A rectangle of the page, pixels."""

    x: int
    y: int
    width: int
    height: int


def paragraphs_in(draw: ImageDraw.ImageDraw, box: Box, paragraphs: Sequence[Paragraph]) -> None:
    """Draw the paragraphs in the largest type that all of them fit in, down to what can still be read.

    What does not fit even then is left out, and the last line says so.
    """
    for y, line, size, colour in fitted(draw, box, paragraphs):
        text(draw, (box.x, y), line, size, colour, box.width)


def fitted(draw: ImageDraw.ImageDraw, box: Box, paragraphs: Sequence[Paragraph]) -> list[tuple[int, str, int, Colour]]:
    """The lines that `paragraphs_in` draws: y of each, its words, its size and its colour."""
    for larger in range(_MOST_LARGER_PX, -_MOST_SMALLER_PX - 1, -1):
        laid_out = [(lines(draw, words, size + larger, box.width), size + larger) for words, size, _ in paragraphs]
        if sum(len(broken) * _step(size) + _GAP_PX for broken, size in laid_out) <= box.height:
            break
    placed, y = [], box.y
    for (broken, size), (_, _, colour) in zip(laid_out, paragraphs, strict=True):
        for line in broken:
            placed.append((y, line, size, colour))
            y += _step(size)
        y += _GAP_PX
    end = box.y + box.height
    kept = [one for one in placed if one[0] + _step(one[2]) <= end]
    if len(kept) < len(placed) and kept:
        y, _, size, colour = kept[-1]
        kept[-1] = (y, LEFT_OUT, size, colour)
    return kept


def _step(size: int) -> int:
    """From one line of text to the next, pixels."""
    return round(size * 1.28)


def lines(draw: ImageDraw.ImageDraw, words: str, size: int, width: int) -> list[str]:
    """The words in lines of at most `width` pixels; a longer word has a line to itself."""
    if len(words) > MOST_CHARACTERS:
        words = words[:MOST_CHARACTERS] + " …"
    font = font_for(words, size) or bundled(size)
    broken = [""]
    for word in words.split():
        longer = f"{broken[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            broken[-1] = longer
        else:
            broken.append(word)
    return [line for line in broken if line]


def text(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    words: str,
    size: int,
    colour: Colour,
    width: int,
    font: Font | None = None,
    anchor: str = "la",
    outlined: bool = False,
) -> None:
    """Draw one line of at most `width` pixels.

    font: one that has the characters; found if None. anchor: of the text at `at`, as Pillow names it.
    """
    if len(words) > MOST_CHARACTERS:
        words = words[:MOST_CHARACTERS] + " …"
    font = font or font_for(words, size) or bundled(size)
    shown = _cut(draw, words, font, width)
    stroke = 2 if outlined else 0
    draw.text(at, shown, font=font, fill=colour, anchor=anchor, stroke_width=stroke, stroke_fill=_OUTLINE)


def _cut(draw: ImageDraw.ImageDraw, words: str, font: Font, width: int) -> str:
    """The text, shortened with an ellipsis if it is wider than `width` pixels."""
    if draw.textlength(words, font=font) <= width:
        return words
    fits, too_long = 0, len(words)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if draw.textlength(words[:middle] + "...", font=font) <= width:
            fits = middle
        else:
            too_long = middle
    return words[:fits] + "..."
