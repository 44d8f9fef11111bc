"""Contact sheets of lung masks: they show every case at a glance, so that a person can find the masks that failed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from inference.arrays import Grey
from inference.training.cached import CachedCase, Dataset

TILE = 220
COLUMNS, ROWS = 5, 4
TEXT = 34
GOOD, FAILED, MASK = (90, 200, 120), (230, 70, 60), (255, 170, 0)


def draw_sheets(dataset: Dataset, folder: Path | None = None) -> list[Path]:
    """Write masks-001.png and so on, failed masks first; each tile shows a coronal and an axial slice of a case.

    folder: the destination; None writes to the data set's own folder.  Returns the paths.
    """
    removed = dataset.removed()
    cases = sorted(dataset.cases, key=lambda case: (case.case not in removed, not case.mask_failures))
    written = []
    for old in (folder or dataset.folder).glob("masks-*.png"):
        old.unlink()
    for start in range(0, len(cases), COLUMNS * ROWS):
        sheet = _sheet(dataset, cases[start : start + COLUMNS * ROWS], removed)
        path = (folder or dataset.folder) / f"masks-{start // (COLUMNS * ROWS) + 1:03d}.png"
        sheet.save(path)
        written.append(path)
    return written


def _sheet(dataset: Dataset, cases: Sequence[CachedCase], removed: frozenset[str]) -> Image.Image:
    columns = min(COLUMNS, len(cases))
    rows = -(-len(cases) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + TEXT)), (20, 20, 20))
    draw = ImageDraw.Draw(sheet)
    for number, case in enumerate(cases):
        x, y = number % columns * TILE, number // columns * (TILE + TEXT)
        grey, mask = dataset.volume(case)
        half = TILE // 2
        for left, plane in ((x, _coronal(grey, mask, case)), (x + half, _axial(grey, mask))):
            sheet.paste(plane.resize((half - 2, TILE - 4), Image.Resampling.BILINEAR), (left + 1, y + 2))
        colour = FAILED if case.case in removed else GOOD
        draw.rectangle((x, y, x + TILE - 1, y + TILE + TEXT - 1), outline=colour, width=2)
        said = case.mask_failures[0] if case.mask_failures else f"{case.mask_ml:.0f} mL"
        for line, text in enumerate((_shortened(case.case, 34), _shortened(said, 36))):
            draw.text((x + 5, y + TILE + 2 + line * 14), text, fill=(230, 230, 230))
    return sheet


def _coronal(grey: Grey, mask: npt.NDArray[np.bool_], case: CachedCase) -> Image.Image:
    row = int(np.argmax(mask.sum(axis=(0, 2)))) if mask.any() else grey.shape[1] // 2
    return _overlaid(grey[::-1, row], mask[::-1, row])


def _axial(grey: Grey, mask: npt.NDArray[np.bool_]) -> Image.Image:
    z = int(np.argmax(mask.sum(axis=(1, 2)))) if mask.any() else len(grey) // 2
    return _overlaid(grey[z], mask[z])


def _overlaid(grey: Grey, mask: npt.NDArray[np.bool_]) -> Image.Image:
    colour = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    colour[mask] = 0.65 * colour[mask] + 0.35 * np.array(MASK, np.float32)
    return Image.fromarray(colour.astype(np.uint8))


def _shortened(text: str, length: int) -> str:
    # The built-in font has only Latin letters.
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return plain if len(plain) <= length else plain[: length - 1] + "~"
