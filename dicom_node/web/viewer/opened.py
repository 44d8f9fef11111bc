"""A series made ready for looking: its images in order, what the browser must know of them, and which are gone."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dicom_node.web.viewer.planes import Plane, PlaneShape, shapes_of
from dicom_node.web.viewer.segments import ImageKey
from inference.volume.arrange import Arrangement, height_mm, normal_of
from inference.volume.instances import Frame
from storage.series import StoredInstance

_BYTES_A_FRAME = 7_000
"""A frame's header in memory, about."""


@dataclass(frozen=True, eq=False)
class OpenedSeries:
    """The images of a series as far as their files are there.

    token: stands for exactly these files; a later image makes another one, and so does a file that vanished.  listed:
    the token that they have if all files are there that the index names.  gone: how many files are not there, by
    reason ("retention", "missing", "corrupt").  stored: the instance of each file that the frames name.
    """

    series_pk: int
    token: str
    listed: str
    arrangement: Arrangement
    gone: Mapping[str, int]
    stored: Mapping[Path, StoredInstance] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return _BYTES_A_FRAME * (len(self.arrangement.frames) + 1)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The images, from foot to head."""
        return self.arrangement.frames

    @cached_property
    def images(self) -> list[ImageKey]:
        """What each image is called in a segmentation."""
        return [(frame.instance.sop_instance_uid, frame.index) for frame in self.frames]

    @cached_property
    def shapes(self) -> dict[Plane, PlaneShape]:
        """The planes of the volume; empty if the images form none."""
        if self.arrangement.stack is None:
            return {}
        pixels = self.frames[0].instance.pixels
        return shapes_of(self.arrangement.stack, pixels.rows, pixels.columns)

    @property
    def volume_bytes(self) -> int:
        """What all images take in memory, decoded."""
        return sum(frame.instance.pixels.rows * frame.instance.pixels.columns * 2 for frame in self.frames)

    def heights_mm(self) -> list[float]:
        """Where each image lies along the direction of the stack, mm; empty if any has no place."""
        normal = normal_of(self.frames[0]) if self.frames else None
        if normal is None or any(frame.position_mm is None for frame in self.frames):
            return []
        return [height_mm(frame, normal) for frame in self.frames]

    def describe(self) -> dict[str, Any]:
        """What the browser must know, JSON types only."""
        stack = self.arrangement.stack
        return {
            "token": self.token,
            "why_no_volume": self.arrangement.why_not,
            "unreadable": len(self.arrangement.unreadable),
            "gone": dict(self.gone),
            "planes": {plane: vars(shape) for plane, shape in self.shapes.items()},
            "affine": np.round(stack.affine, 6).tolist() if stack is not None else None,
            "images": [_image(frame, in_volume=stack is not None) for frame in self.frames],
        }


def _image(frame: Frame, *, in_volume: bool) -> dict[str, Any]:
    """One image; where it lies only if the volume does not say it for all."""
    pixels = frame.instance.pixels
    affine = None if in_volume else affine_of(frame)
    return {
        "uid": frame.instance.sop_instance_uid,
        "frame": frame.index + 1 if frame.index else 0,
        "rows": pixels.rows,
        "columns": pixels.columns,
        "number": frame.instance.number,
        "affine": None if affine is None else np.round(affine, 6).tolist(),
    }


def affine_of(frame: Frame) -> npt.NDArray[np.float64] | None:
    """(3, 3): column, row and 1 of one image to patient coordinates (LPS), mm; None if its header does not say."""
    if frame.position_mm is None or frame.orientation is None or frame.spacing_mm is None:
        return None
    across, down = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    return np.stack([across * frame.spacing_mm[1], down * frame.spacing_mm[0], np.array(frame.position_mm)], axis=1)


def token_of(instances: Sequence[StoredInstance], missing: Collection[str] = ()) -> str:
    """Stands for exactly these files, in an address: says nothing about a patient. missing: paths of files that are
    not there although the index says so."""
    sha = hashlib.sha256()
    for item in instances:
        sha.update(f"{item.path} {item.sha256} {'vanished' if item.path in missing else item.gone}\n".encode())
    return sha.hexdigest()[:16]
