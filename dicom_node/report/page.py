"""The summary page: what stands where on its 1024 x 768 pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dicom_node.report import page_words, wording
from dicom_node.report.charts import draw_histogram, draw_table, table_height
from dicom_node.report.fonts import bundled, showable_name
from dicom_node.report.frame import Origin
from dicom_node.report.naming import slice_name, values_of
from dicom_node.report.page_words import AMBER, GREY, WHITE
from dicom_node.report.planes import LUNG_COLOUR, REGION_COLOUR, Anatomy, axial, coronal, lung_box, sagittal
from dicom_node.report.typesetting import Box, Colour, paragraphs_in, text
from inference.numerals import percent
from inference.plug import Finding, FindingByCode
from inference.volume.ct_volume import CTVolume

SIZE_PX = (1024, 768)
HEADER_PX = 94
BACKGROUND = (12, 14, 18)
_FAINT = (70, 70, 70)
_POSITIVE = (255, 120, 90)
# Not green: a low output is not an all-clear.
_NEGATIVE = (170, 200, 235)

_BANNER_PX = 30
_COLUMN_PX = 316
_STRIP_PX = 250
_STRIP_COLUMNS, _STRIP_ROWS = 5, 2
_CHART_PX = 274
_EDGE_PX = 12
_NOT_COUNTED_DIMMED = 0.45


@dataclass(frozen=True)
class Page:
    """The page under the pen, and what it is about."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    finding: Finding
    volume: CTVolume
    anatomy: Anatomy
    origin: Origin

    def source_slice(self, plane: int) -> int:
        """z of the source slice that an axial plane of the anatomy shows."""
        return self.anatomy.turn.source_slice(plane, self.anatomy.hu.shape[0])

    def name_of(self, plane: int) -> str:
        """How the source calls an axial plane of the anatomy."""
        return slice_name(self.volume, self.origin, self.source_slice(plane))


def draw_page(finding: Finding, volume: CTVolume, anatomy: Anatomy, origin: Origin) -> Image.Image:
    """The page as an RGB image."""
    image = Image.new("RGB", SIZE_PX, BACKGROUND)
    page = Page(image, ImageDraw.Draw(image), finding, volume, anatomy, origin)
    draw_header(page.draw, origin, f"{finding.model.words.subject} chest CT, AI summary")
    top = HEADER_PX
    _column(page, Box(_EDGE_PX, top + 10, _COLUMN_PX - _EDGE_PX, SIZE_PX[1] - top - 16))
    left, width = _COLUMN_PX + 12, SIZE_PX[0] - _COLUMN_PX - 20
    _planes(page, Box(left, top + 6, width, SIZE_PX[1] - top - _STRIP_PX - 12))
    below = Box(left, SIZE_PX[1] - _STRIP_PX, width, _STRIP_PX - 6)
    histogram = finding.output.histogram
    if histogram is None:
        _strip(page, below, _STRIP_COLUMNS)
    else:
        _strip(page, Box(below.x, below.y, below.width - _CHART_PX, below.height), _STRIP_COLUMNS - 2)
        right = below.x + below.width - _CHART_PX
        draw_histogram(page.draw, Box(right + 8, below.y, _CHART_PX - 8, below.height), histogram)
    return image


def draw_header(draw: ImageDraw.ImageDraw, origin: Origin, title: str) -> None:
    """Patient, study and title, and the banner below them: the uppermost HEADER_PX of a page."""
    first = origin.first
    name, font = showable_name(str(first.PatientName), 24)
    text(draw, (_EDGE_PX, 6), name, 24, WHITE, 560, font)
    born = _date(first.PatientBirthDate)
    facts = [f"ID {first.PatientID or 'none'}", f"born {born}" if born else "", str(first.PatientSex or "")]
    text(draw, (_EDGE_PX, 38), "   ".join(filter(None, facts)), 16, GREY, 560)
    right = SIZE_PX[0] - _EDGE_PX
    text(draw, (right, 8), title, 20, WHITE, 420, anchor="ra")
    number = values_of(first, "SeriesNumber") or "-"
    study = f"Study {_date(first.StudyDate) or 'without date'}   series {number}"
    text(draw, (right, 38), study, 16, GREY, 420, anchor="ra")
    words = "RESEARCH USE ONLY  -  NOT FOR DIAGNOSIS"
    if origin.model is not None and origin.model.demonstration:
        words = "DEMONSTRATION MODEL, TRAINED ON PHANTOMS  -  " + words
    draw.rectangle((0, HEADER_PX - _BANNER_PX, SIZE_PX[0], HEADER_PX), fill=(96, 58, 0))
    middle = (SIZE_PX[0] // 2, HEADER_PX - _BANNER_PX // 2)
    text(draw, middle, words, 19, (255, 225, 160), SIZE_PX[0], anchor="mm")


def _column(page: Page, box: Box) -> None:
    """The result in words, from top to bottom."""
    stated = [one for one in page.finding.output.findings if one.certainty is not None]
    used = _output(page.draw, box, stated[0]) if stated else 0
    table = page.finding.output.table
    if table is not None:
        draw_table(page.draw, Box(box.x, box.y + used, box.width, box.height), table)
        used += table_height(table)
    rest = Box(box.x, box.y + used, box.width, box.height - used)
    paragraphs_in(page.draw, rest, page_words.paragraphs(page.finding, page.volume, page.origin))


def _output(draw: ImageDraw.ImageDraw, box: Box, finding: FindingByCode) -> int:
    """The certainty in large figures, its side of the threshold, and a bar. Returns the height used, pixels."""
    colour, threshold = _colour(finding), finding.threshold
    text(draw, (box.x, box.y), f"Model output for {finding.concept.meaning}", 16, GREY, box.width)
    shown = percent(finding.certainty or 0.0, threshold)
    text(draw, (box.x, box.y + 20), f"{shown} %", 46 if len(shown) < 7 else 34, colour, box.width)
    if finding.unstable is not None:
        span = wording.span(finding.unstable, threshold)
        text(draw, (box.x + box.width, box.y + 40), span, 22, AMBER, box.width // 2, anchor="ra")
    text(draw, (box.x, box.y + 78), _side(finding), 17, colour, box.width)
    _gauge(draw, Box(box.x, box.y + 104, box.width, 14), finding)
    return 134


def _side(finding: FindingByCode) -> str:
    words = finding.interpretation.meaning.upper()
    if finding.threshold is None or finding.positive is None:
        return words
    side = "at or above" if finding.positive else "below"
    return f"{words}: {side} threshold {100 * finding.threshold:.10g} %"


def _colour(finding: FindingByCode) -> Colour:
    return _POSITIVE if finding.positive else _NEGATIVE


def _gauge(draw: ImageDraw.ImageDraw, box: Box, finding: FindingByCode) -> None:
    """The output as a bar from 0 to 100 % with the threshold marked."""
    draw.rectangle((box.x, box.y, box.x + box.width, box.y + box.height), outline=_FAINT)
    end = box.x + round((finding.certainty or 0.0) * box.width)
    draw.rectangle((box.x, box.y, end, box.y + box.height), fill=_colour(finding))
    if finding.threshold is not None:
        mark = box.x + round(finding.threshold * box.width)
        draw.line((mark, box.y - 5, mark, box.y + box.height + 5), fill=WHITE, width=2)


def _planes(page: Page, box: Box) -> None:
    """Axial large on the left, coronal and sagittal over each other on the right, a legend below."""
    anatomy = page.anatomy
    cut = lung_box(anatomy)
    head, back, left = anatomy.focus
    wide, half = round(box.width * 0.66), (box.height - 30) // 2
    large = Box(box.x, box.y, wide - 6, 2 * half)
    upper = Box(box.x + wide, box.y, box.width - wide, half - 4)
    lower = Box(box.x + wide, box.y + half + 4, box.width - wide, half - 4)
    place(page.image, axial(anatomy, head, cut, (large.width, large.height)), large, "R", "L")
    place(page.image, coronal(anatomy, back, cut, (upper.width, upper.height)), upper, "R", "L")
    place(page.image, sagittal(anatomy, left, cut, (lower.width, lower.height)), lower, "A", "P")
    text(page.draw, (box.x + 6, box.y + 4), page.name_of(head), 15, WHITE, large.width, outlined=True)
    _legend(page, box.x, box.y + box.height - 22)


def place(sheet: Image.Image, image: Image.Image, box: Box, left_side: str, right_side: str) -> None:
    """Put an image in the middle of its box on a page, with the patient's sides marked."""
    draw = ImageDraw.Draw(sheet)
    x, y = box.x + (box.width - image.width) // 2, box.y + (box.height - image.height) // 2
    sheet.paste(image, (x, y))
    middle = y + image.height // 2
    text(draw, (x + 4, middle), left_side, 17, WHITE, 40, anchor="lm", outlined=True)
    text(draw, (x + image.width - 4, middle), right_side, 17, WHITE, 40, anchor="rm", outlined=True)


def _legend(page: Page, x: int, y: int) -> None:
    anatomy = page.anatomy
    entries = [(LUNG_COLOUR, words) for words in _legends(page.finding, "anatomy")]
    if anatomy.shows_finding:
        entries += [(REGION_COLOUR, words) for words in _legends(page.finding, "finding")]
    elif anatomy.heat is None:
        entries.append((_FAINT, "no region: planes through the middle of the lungs"))
    elif anatomy.shows_hottest:
        entries.append((REGION_COLOUR, "no region: planes through the hottest point"))
    else:
        entries.append((_FAINT, "hottest outside the lungs: planes through their middle"))
    for colour, words in entries:
        filled = colour if colour == REGION_COLOUR and anatomy.area is not None else None
        page.draw.rectangle((x, y + 3, x + 14, y + 15), filled, outline=colour, width=2)
        text(page.draw, (x + 20, y), words, 15, GREY, 420)
        x += 20 + round(page.draw.textlength(words, font=bundled(15))) + 24


def _legends(finding: Finding, purpose: str) -> list[str]:
    """What the outlines of one colour are called."""
    found = [one for one in finding.output.segments if one.purpose == purpose and one.mask.any()]
    found = found or [one for one in finding.output.segments if one.purpose == purpose]
    return [", ".join(one.legend or one.label or one.title for one in found)] if found else []


def _strip(page: Page, box: Box, columns: int) -> None:
    """Axial slices evenly through the lungs, from the top to the base; those that did not count are dimmed."""
    anatomy = page.anatomy
    cut = lung_box(anatomy)
    width, height = box.width // columns, box.height // _STRIP_ROWS
    for number, plane in enumerate(_evenly(anatomy, columns * _STRIP_ROWS)):
        x, y = box.x + number % columns * width, box.y + number // columns * height
        image = axial(anatomy, plane, cut, (width - 6, height - 20))
        counts = _counts(page, plane)
        if not counts:
            image = Image.blend(image, Image.new("RGB", image.size, BACKGROUND), _NOT_COUNTED_DIMMED)
        page.image.paste(image, (x + (width - image.width) // 2, y))
        middle = x + width // 2
        if not counts:
            at = (middle, y + image.height // 2)
            text(page.draw, at, "not counted", 14, AMBER, width, anchor="mm", outlined=True)
        text(page.draw, (middle, y + image.height + 2), page.name_of(plane), 13, GREY, width, anchor="ma")


def _counts(page: Page, plane: int) -> bool:
    """Whether the output was computed from this axial plane, among others."""
    counted = page.finding.output.slices
    return counted is None or counted[0] <= page.source_slice(plane) <= counted[1]


def _evenly(anatomy: Anatomy, count: int) -> list[int]:
    """Planes at the middles of equal parts of the lungs' height, the highest first."""
    found = np.flatnonzero(anatomy.lungs.any(axis=(1, 2)))
    low, high = (int(found[0]), int(found[-1])) if found.size else (0, anatomy.lungs.shape[0] - 1)
    parts = (np.arange(count) + 0.5) / count
    return [round(high - part * (high - low)) for part in parts]


def _date(value: object) -> str:
    digits = str(value or "")
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}" if len(digits) == 8 and digits.isdigit() else digits
