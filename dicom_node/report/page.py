"""The summary page: what stands where on its 1024 x 768 pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dicom_node.report import wording
from dicom_node.report.fonts import bundled, font_for, showable_name
from dicom_node.report.frame import Origin, slice_name, verdict_slices
from dicom_node.report.planes import (
    LUNG_COLOUR,
    REGION_COLOUR,
    Anatomy,
    axial,
    coronal,
    lung_box,
    sagittal,
)
from inference.finding import Finding
from inference.volume.ct_volume import CTVolume

SIZE_PX = (1024, 768)
_WHITE = (240, 240, 240)
_GREY = (165, 165, 165)
_FAINT = (70, 70, 70)
_AMBER = (255, 190, 60)
_POSITIVE = (255, 120, 90)
# Not green: a low output is no all-clear.
_NEGATIVE = (170, 200, 235)
_BACKGROUND = (12, 14, 18)

_HEADER_PX = 64
_BANNER_PX = 30
_COLUMN_PX = 316
_STRIP_PX = 250
_STRIP_IMAGES = 10
_STRIP_ROWS = 2
_EDGE_PX = 12
_GAP_PX = 7
_MOST_LARGER_PX, _MOST_SMALLER_PX = 3, 3

Paragraph = tuple[str, int, tuple[int, int, int]]
"""Text, size in pixels and colour."""


@dataclass(frozen=True)
class Box:
    """A rectangle of the page, pixels."""

    x: int
    y: int
    width: int
    height: int


def draw_page(finding: Finding, volume: CTVolume, anatomy: Anatomy, origin: Origin) -> Image.Image:
    """The page as an RGB image."""
    page = Image.new("RGB", SIZE_PX, _BACKGROUND)
    draw = ImageDraw.Draw(page)
    _header(draw, origin)
    _banner(draw, finding)
    top = _HEADER_PX + _BANNER_PX
    _column(draw, Box(_EDGE_PX, top + 10, _COLUMN_PX - _EDGE_PX, SIZE_PX[1] - top - 16), finding, volume, origin)
    width, height = SIZE_PX[0] - _COLUMN_PX - 12, SIZE_PX[1] - top - _STRIP_PX
    _planes(page, draw, Box(_COLUMN_PX + 12, top + 6, width - 8, height - 12), anatomy, volume, origin)
    _strip(page, draw, Box(_COLUMN_PX + 12, SIZE_PX[1] - _STRIP_PX, width - 8, _STRIP_PX - 6), anatomy, volume, origin)
    return page


def _header(draw: ImageDraw.ImageDraw, origin: Origin) -> None:
    first = origin.first
    name, font = showable_name(str(first.PatientName), 24)
    draw.text((_EDGE_PX, 6), _cut(draw, name, font, 560), font=font, fill=_WHITE)
    born = _date(first.PatientBirthDate)
    facts = [f"ID {first.PatientID or 'none'}", f"born {born}" if born else "", str(first.PatientSex or "")]
    _text(draw, (_EDGE_PX, 38), "   ".join(filter(None, facts)), 16, _GREY, 560)
    right = SIZE_PX[0] - _EDGE_PX
    draw.text((right, 8), "COVID-19 chest CT, AI summary", font=bundled(20), fill=_WHITE, anchor="ra")
    study = f"Study {_date(first.StudyDate) or 'without date'}   series {first.get('SeriesNumber') or '-'}"
    draw.text((right, 38), study, font=bundled(16), fill=_GREY, anchor="ra")


def _banner(draw: ImageDraw.ImageDraw, finding: Finding) -> None:
    words = "RESEARCH USE ONLY  -  NOT FOR DIAGNOSIS"
    if finding.model.demonstration:
        words = "DEMONSTRATION MODEL, TRAINED ON PHANTOMS  -  " + words
    draw.rectangle((0, _HEADER_PX, SIZE_PX[0], _HEADER_PX + _BANNER_PX), fill=(96, 58, 0))
    middle = (SIZE_PX[0] // 2, _HEADER_PX + _BANNER_PX // 2)
    draw.text(middle, words, font=bundled(19), fill=(255, 225, 160), anchor="mm")


def _column(draw: ImageDraw.ImageDraw, box: Box, finding: Finding, volume: CTVolume, origin: Origin) -> None:
    """The result in words, from top to bottom."""
    threshold = finding.model.threshold
    colour = _POSITIVE if finding.positive else _NEGATIVE
    y = box.y
    _text(draw, (box.x, y), "Model output for COVID-19", 16, _GREY, box.width)
    shown = wording.percent(finding.probability, threshold)
    draw.text((box.x, y + 20), f"{shown} %", font=bundled(46 if len(shown) < 7 else 34), fill=colour)
    side = "POSITIVE: at or above" if finding.positive else "NEGATIVE: below"
    _text(draw, (box.x, y + 78), f"{side} threshold {100 * threshold:.10g} %", 17, colour, box.width)
    _gauge(draw, Box(box.x, y + 104, box.width, 14), finding)
    y += 134
    rest = Box(box.x, y, box.width, box.y + box.height - y)
    _paragraphs_in(draw, rest, _paragraphs(finding, volume, origin))


def _paragraphs_in(draw: ImageDraw.ImageDraw, box: Box, paragraphs: Sequence[Paragraph]) -> None:
    """Draw the paragraphs in the largest type that all of them fit in, down to what can still be read."""
    for larger in range(_MOST_LARGER_PX, -_MOST_SMALLER_PX - 1, -1):
        laid_out = [(_lines(draw, words, size + larger, box.width), size + larger) for words, size, _ in paragraphs]
        if sum(len(lines) * _step(size) + _GAP_PX for lines, size in laid_out) <= box.height:
            break
    y = box.y
    for (lines, size), (_, _, colour) in zip(laid_out, paragraphs, strict=True):
        for line in lines:
            _text(draw, (box.x, y), line, size, colour, box.width)
            y += _step(size)
        y += _GAP_PX


def _step(size: int) -> int:
    """From one line of text to the next, pixels."""
    return round(size * 1.28)


def _gauge(draw: ImageDraw.ImageDraw, box: Box, finding: Finding) -> None:
    """Probability as a bar from 0 to 100 % with the threshold marked."""
    draw.rectangle((box.x, box.y, box.x + box.width, box.y + box.height), outline=_FAINT)
    end = box.x + round(finding.probability * box.width)
    draw.rectangle((box.x, box.y, end, box.y + box.height), fill=_POSITIVE if finding.positive else _NEGATIVE)
    mark = box.x + round(finding.model.threshold * box.width)
    draw.line((mark, box.y - 5, mark, box.y + box.height + 5), fill=_WHITE, width=2)


def _paragraphs(finding: Finding, volume: CTVolume, origin: Origin) -> list[Paragraph]:
    model, context = finding.model, origin.context
    point = [p for p in context.operating_points if p.threshold == model.threshold][:1]
    meaning = wording.operating_points(point, model.threshold, context.prevalence) or [
        "No operating point is published for this model."
    ]
    lungs = f"Lungs {finding.lung_volume_ml:.0f} mL"
    if finding.left_lung_ml > 0 or finding.right_lung_ml > 0:
        lungs += f" (right {finding.right_lung_ml:.0f}, left {finding.left_lung_ml:.0f})"
    checks = ", ".join(wording.check_name(check.code) for check in finding.checks) or "none recorded"
    digests = f"weights {model.unet_sha256[:8]} / {model.decovnet_sha256[:8]}"
    verified = "" if model.verified else " (not verified)"
    return [
        (
            "How sure the model is, not the probability of the disease. Other lung disease can score as high.",
            14,
            _AMBER,
        ),
        (" ".join(meaning), 14, _WHITE),
        (lungs, 15, _WHITE),
        *_region_paragraph(finding, volume),
        (
            f"Coverage: {volume.hu.shape[0]} slices, {_extent(volume)} mm, spacing {volume.spacing_mm[0]:.3g} mm",
            14,
            _GREY,
        ),
        *([(verdict, 14, _WHITE)] if (verdict := verdict_slices(finding, volume, origin)) else []),
        *([(wording.part_analysed(volume.part), 14, _AMBER)] if volume.part else []),
        (f"Checks passed: {checks}", 14, _GREY),
        (f"Model {model.name} {model.version}, profile {model.profile}, {digests}{verified}", 13, _GREY),
        (
            f"{context.device_name} {context.software_version}, {_moment(origin)}, revision {context.revision}",
            13,
            _GREY,
        ),
    ]


def _region_paragraph(finding: Finding, volume: CTVolume) -> list[Paragraph]:
    if finding.localisation is None:
        return []
    if not finding.localisation.any():
        return [(wording.nothing_localised(finding), 14, _AMBER)]
    region = np.count_nonzero(finding.localisation)
    words = f"Region that drove the model {region * volume.voxel_ml:.0f} mL"
    inside, lungs = np.count_nonzero(finding.localisation & finding.lung_mask), np.count_nonzero(finding.lung_mask)
    if lungs:
        words += f", {100 * inside / lungs:.1f} % of the lungs"
    return [(words + ". Not a lesion boundary.", 15, REGION_COLOUR)]


def _planes(
    page: Image.Image, draw: ImageDraw.ImageDraw, box: Box, anatomy: Anatomy, volume: CTVolume, origin: Origin
) -> None:
    """Axial large on the left, coronal and sagittal over each other on the right, a legend below."""
    cut = lung_box(anatomy)
    head, back, left = anatomy.focus
    wide = round(box.width * 0.66)
    half = (box.height - 30) // 2
    places = (
        (axial(anatomy, head, cut, (wide - 6, 2 * half)), Box(box.x, box.y, wide - 6, 2 * half), "R", "L"),
        (
            coronal(anatomy, back, cut, (box.width - wide, half - 4)),
            Box(box.x + wide, box.y, box.width - wide, half - 4),
            "R",
            "L",
        ),
        (
            sagittal(anatomy, left, cut, (box.width - wide, half - 4)),
            Box(box.x + wide, box.y + half + 4, box.width - wide, half - 4),
            "A",
            "P",
        ),
    )
    for image, place, left_side, right_side in places:
        _placed(page, draw, image, place, left_side, right_side)
    number = slice_name(volume, origin, anatomy.turn.source_slice(head, anatomy.hu.shape[0]))
    draw.text((box.x + 6, box.y + 4), number, font=bundled(15), fill=_WHITE, stroke_width=2, stroke_fill=(0, 0, 0))
    _legend(draw, box.x, box.y + box.height - 22, anatomy)


def _placed(
    page: Image.Image, draw: ImageDraw.ImageDraw, image: Image.Image, box: Box, left_side: str, right_side: str
) -> None:
    """An image in the middle of its box with the patient's sides marked."""
    x, y = box.x + (box.width - image.width) // 2, box.y + (box.height - image.height) // 2
    page.paste(image, (x, y))
    middle = y + image.height // 2
    draw.text(
        (x + 4, middle), left_side, font=bundled(17), fill=_WHITE, anchor="lm", stroke_width=2, stroke_fill=(0, 0, 0)
    )
    edge = x + image.width - 4
    draw.text(
        (edge, middle), right_side, font=bundled(17), fill=_WHITE, anchor="rm", stroke_width=2, stroke_fill=(0, 0, 0)
    )


def _legend(draw: ImageDraw.ImageDraw, x: int, y: int, anatomy: Anatomy) -> None:
    entries = [(LUNG_COLOUR, "lungs as found by the U-Net")]
    if anatomy.region is not None:
        entries.append((REGION_COLOUR, "what drove the model, not a lesion boundary"))
    elif anatomy.heat is not None:
        entries.append((REGION_COLOUR, "no region: planes through the hottest point"))
    else:
        entries.append((_FAINT, "no region: planes through the middle of the lungs"))
    for colour, words in entries:
        draw.rectangle((x, y + 3, x + 14, y + 15), outline=colour, width=2)
        draw.text((x + 20, y), words, font=bundled(15), fill=_GREY)
        x += 20 + round(draw.textlength(words, font=bundled(15))) + 24


def _strip(
    page: Image.Image, draw: ImageDraw.ImageDraw, box: Box, anatomy: Anatomy, volume: CTVolume, origin: Origin
) -> None:
    """Axial slices evenly through the lungs, from the top to the base."""
    cut = lung_box(anatomy)
    columns = _STRIP_IMAGES // _STRIP_ROWS
    width, height = box.width // columns, box.height // _STRIP_ROWS
    for number, plane in enumerate(_evenly(anatomy)):
        x, y = box.x + number % columns * width, box.y + number // columns * height
        image = axial(anatomy, plane, cut, (width - 6, height - 20))
        page.paste(image, (x + (width - image.width) // 2, y))
        name = slice_name(volume, origin, anatomy.turn.source_slice(plane, anatomy.hu.shape[0]))
        draw.text((x + width // 2, y + image.height + 2), name, font=bundled(13), fill=_GREY, anchor="ma")


def _evenly(anatomy: Anatomy) -> list[int]:
    """Planes at the middles of equal parts of the lungs' height, the highest first."""
    found = np.flatnonzero(anatomy.lungs.any(axis=(1, 2)))
    low, high = (int(found[0]), int(found[-1])) if found.size else (0, anatomy.lungs.shape[0] - 1)
    parts = (np.arange(_STRIP_IMAGES) + 0.5) / _STRIP_IMAGES
    return [round(high - part * (high - low)) for part in parts]


def _lines(draw: ImageDraw.ImageDraw, words: str, size: int, width: int) -> Sequence[str]:
    font = font_for(words, size) or bundled(size)
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], words: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    font = font_for(words, size) or bundled(size)
    draw.text(at, _cut(draw, words, font, width), font=font, fill=colour)


def _cut(draw: ImageDraw.ImageDraw, words: str, font: object, width: int) -> str:
    """The text, shortened with an ellipsis where it is wider than `width` pixels."""
    if draw.textlength(words, font=font) <= width:  # type: ignore[arg-type]
        return words
    while words and draw.textlength(words + "...", font=font) > width:  # type: ignore[arg-type]
        words = words[:-1]
    return words + "..."


def _extent(volume: CTVolume) -> str:
    return f"{volume.hu.shape[0] * volume.spacing_mm[0]:.0f}"


def _date(value: object) -> str:
    digits = str(value or "")
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}" if len(digits) == 8 and digits.isdigit() else digits


def _moment(origin: Origin) -> str:
    return origin.context.created_in_zone_of(origin.first).strftime("%Y-%m-%d %H:%M")
