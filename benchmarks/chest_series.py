"""Chest CT to send again and again: a phantom is made once, and each copy is a new series of a new patient."""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread

from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series

CHEST_MM = 300
"""What a scan of an adult's chest covers. Thinner slices are more slices of the same chest."""
PIXEL_MM = 0.75
PIXEL_DATA = b"\xe0\x7f\x10\x00OW"
SEED = 3


@dataclass(frozen=True)
class Chest:
    """A series on the disk. files: in the order in which a scanner sends them, from the head down."""

    files: tuple[Path, ...]
    study_uid: str
    series_uid: str

    @property
    def slice_bytes(self) -> float:
        """The mean size of a file."""
        return sum(file.stat().st_size for file in self.files) / len(self.files)


def make_chest(folder: Path, slices: int, size: int = 512) -> Chest:
    """A phantom that a chest model accepts, in uncompressed files. Its slices are CHEST_MM / slices apart."""
    spacing = (CHEST_MM / slices, PIXEL_MM * 512 / size, PIXEL_MM * 512 / size)
    phantom = make_phantom(SEED, slices=slices, size=size, spacing_mm=spacing, lesions="mixed")
    return _described(write_series(phantom, folder))


def _described(from_the_feet: list[Path]) -> Chest:
    header = dcmread(from_the_feet[0], stop_before_pixels=True)
    return Chest(tuple(reversed(from_the_feet)), header.StudyInstanceUID, header.SeriesInstanceUID)


def copy_chest(chest: Chest, folder: Path, number: int, shuffled: bool = False) -> Chest:
    """The same pixels as a new series of a new study and patient. number: makes the Patient ID."""
    folder.mkdir(parents=True)
    others: dict[bytes, bytes] = {}
    copied = []
    for file in chest.files:
        content = file.read_bytes()
        start = content.index(PIXEL_DATA)
        header = re.sub(
            rb"2\.25\.\d+", lambda found: others.setdefault(found[0], _other_uid(found[0])), content[:start]
        )
        header = re.sub(rb"SYNTHETIC-\d", b"%011d" % number, header)
        copied.append(folder / file.name)
        copied[-1].write_bytes(header + content[start:])
    if shuffled:
        random.Random(number).shuffle(copied)
    named = (others[uid.encode()].decode() for uid in (chest.study_uid, chest.series_uid))
    return Chest(tuple(copied), *named)


def _other_uid(uid: bytes) -> bytes:
    """A new UID of the same length, so that no length in the file changes."""
    digits = len(uid) - len(b"2.25.")
    return b"2.25.1" + b"%0*d" % (digits - 1, random.randrange(10 ** (digits - 1)))
