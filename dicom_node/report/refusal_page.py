"""The page that shows why a series was not analysed: the reason in words, and the slice that shows it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from config.reasons import ReasonCode, Refusal
from dicom_node.report.fonts import bundled
from dicom_node.report.frame import Origin
from dicom_node.report.naming import acquisition, slice_name
from dicom_node.report.page import BACKGROUND, HEADER_PX, SIZE_PX, draw_header, place
from dicom_node.report.page_words import AMBER, GREY, WHITE, made_by
from dicom_node.report.planes import LUNG_COLOUR, REGION_COLOUR, Anatomy, axial, coronal, sagittal, turn_of
from dicom_node.report.typesetting import Box, Paragraph, paragraphs_in, text
from inference.errors import Evidence
from inference.volume.ct_volume import CTVolume

_COLUMN_PX, _EDGE_PX, _LEGEND_PX = 316, 12, 30


@dataclass(frozen=True)
class RefusalPage:
    """The page under the pen. volume: upright."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    refusal: Refusal
    evidence: Evidence
    volume: CTVolume
    anatomy: Anatomy
    origin: Origin


def draw_refusal_page(
    refusal: Refusal, evidence: Evidence, volume: CTVolume, anatomy: Anatomy, origin: Origin
) -> Image.Image:
    """The page as an RGB image. volume: upright, like the evidence.  anatomy: see `refused_anatomy`."""
    image = Image.new("RGB", SIZE_PX, BACKGROUND)
    page = RefusalPage(image, ImageDraw.Draw(image), refusal, evidence, volume, anatomy, origin)
    subject = "Chest" if origin.model is None else origin.model.words.subject
    draw_header(page.draw, origin, f"{subject} chest CT, not analysed")
    column = Box(_EDGE_PX, HEADER_PX + 10, _COLUMN_PX - _EDGE_PX, SIZE_PX[1] - HEADER_PX - 16)
    text(page.draw, (column.x, column.y), "NOT ANALYSED", 34, AMBER, column.width)
    below = Box(column.x, column.y + 52, column.width, column.height - 52)
    paragraphs_in(page.draw, below, _paragraphs(page))
    left = _COLUMN_PX + 12
    _planes(page, Box(left, HEADER_PX + 6, SIZE_PX[0] - left - 8, SIZE_PX[1] - HEADER_PX - 12))
    return image


def refused_anatomy(evidence: Evidence, volume: CTVolume) -> Anatomy:
    """An upright volume turned for display, with what the evidence marks, and the voxel to show."""
    turn = turn_of(volume.affine)
    nothing = np.broadcast_to(np.zeros((), bool), volume.hu.shape)
    lungs = nothing if evidence.lungs is None else evidence.lungs
    suspect = nothing if evidence.suspect is None else evidence.suspect
    z = evidence.z
    if z is None:
        z = int(np.count_nonzero(lungs, axis=(1, 2)).argmax()) if lungs.any() else len(lungs) // 2
    # A frame is shown in the axial plane; the others show the lungs then, and not its corner.
    shown = suspect[z] if suspect[z].any() and evidence.box is None else lungs[z]
    voxel = (z, *_middle(shown))
    focus = [
        lungs.shape[axis] - 1 - voxel[axis] if back else voxel[axis]
        for axis, back in zip(turn.axes, turn.reversed, strict=True)
    ]
    spacing = tuple(volume.spacing_mm[axis] for axis in turn.axes)
    return Anatomy(
        hu=turn.view(volume.hu).astype(np.int16, copy=False),
        lungs=turn.view(lungs).astype(bool, copy=False),
        region=turn.view(suspect).astype(bool, copy=False) if suspect.any() else None,
        heat=None,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        focus=(focus[0], focus[1], focus[2]),
        turn=turn,
    )


def _middle(plane: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel that is nearest to the centre of a mask's larger side, or the middle of an empty one."""
    pixels = np.argwhere(plane)
    if not len(pixels):
        return plane.shape[0] // 2, plane.shape[1] // 2
    low = pixels[:, 1] <= pixels[:, 1].mean()
    pixels = pixels[low if low.mean() >= 0.5 else ~low]
    nearest = pixels[np.abs(pixels - pixels.mean(axis=0)).sum(axis=1).argmin()]
    return int(nearest[0]), int(nearest[1])


def _paragraphs(page: RefusalPage) -> list[Paragraph]:
    code, model = page.refusal.code, page.origin.model
    advice = code.advice if isinstance(code, ReasonCode) else ""
    return [
        (str(code), 15, GREY),
        (page.refusal.sentence, 18, WHITE),
        *([(f"What can be done: {advice}", 15, AMBER)] if advice else []),
        ("There is no result for this series, neither positive nor negative.", 15, WHITE),
        (acquisition(page.volume, page.origin), 14, GREY),
        *([(f"Model {model.name} {model.version}", 13, GREY)] if model is not None else []),
        (made_by(page.origin), 13, GREY),
    ]


def _planes(page: RefusalPage, box: Box) -> None:
    """Axial above; coronal and sagittal below, each with a line at the height of the axial plane."""
    anatomy, every = page.anatomy, (slice(None), slice(None), slice(None))
    head, back, left = anatomy.focus
    tall, half = round((box.height - _LEGEND_PX) * 0.6), box.width // 2
    large = Box(box.x, box.y, box.width, tall - 6)
    low = box.height - _LEGEND_PX - tall
    right, other = Box(box.x, box.y + tall, half - 4, low), Box(box.x + half + 4, box.y + tall, half - 4, low)
    upper = axial(anatomy, head, every, (large.width, large.height))
    _draw_box(page, upper)
    place(page.image, upper, large, "R", "L")
    for image, within, sides in (
        (coronal(anatomy, back, every, (right.width, right.height)), right, ("R", "L")),
        (sagittal(anatomy, left, every, (other.width, other.height)), other, ("A", "P")),
    ):
        height = round((1 - (head + 0.5) / anatomy.hu.shape[0]) * image.height)
        ImageDraw.Draw(image).line((0, height, image.width, height), fill=WHITE)
        place(page.image, image, within, *sides)
    name = slice_name(page.volume, page.origin, anatomy.turn.source_slice(head, anatomy.hu.shape[0]))
    text(page.draw, (box.x + 6, box.y + 4), name, 15, WHITE, large.width, outlined=True)
    _legend(page, box.x, box.y + box.height - 22)


def _draw_box(page: RefusalPage, image: Image.Image) -> None:
    if page.evidence.box is None:
        return
    rows, columns = page.evidence.box
    down, across = (size / count for size, count in zip(image.size[::-1], page.anatomy.hu.shape[1:], strict=True))
    corners = (columns.start * across, rows.start * down, columns.stop * across - 1, rows.stop * down - 1)
    ImageDraw.Draw(image).rectangle(corners, outline=WHITE, width=2)


def _legend(page: RefusalPage, x: int, y: int) -> None:
    """Only what the page shows."""
    entries = [(WHITE, "line: height of the slice above")]
    if page.anatomy.lungs.any():
        entries.append((LUNG_COLOUR, "lungs"))
    if page.anatomy.region is not None:
        entries.append((REGION_COLOUR, "not lung, but taken for it"))
    if page.evidence.box is not None:
        entries.append((WHITE, "frame: input of the verdict"))
    for colour, words in entries:
        page.draw.rectangle((x, y + 3, x + 14, y + 15), outline=colour, width=2)
        text(page.draw, (x + 20, y), words, 14, GREY, 300)
        x += 20 + round(page.draw.textlength(words, font=bundled(14))) + 24
