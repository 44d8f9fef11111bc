"""A CT series as a volume: plain data without torch, so that any process may import it."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SourceSlice:
    """The source of one slice of the volume.

    frame: 0-based frame of a multi-frame instance, 0 for a classic one.
    position_mm: ImagePositionPatient of the slice's first pixel, LPS millimetres.
    """

    path: Path
    sop_instance_uid: str
    sop_class_uid: str
    frame: int
    position_mm: tuple[float, float, float]


@dataclass(frozen=True)
class SeriesHeader:
    """What the suitability rules and the report need from the headers; empty if the source does not say.

    Values are those of the lowest slice, with four exceptions: a flag is set when any slice sets it, `has_rescale`
    is set only when every slice has both values, `bits_stored` is the smallest, and `mas` the mean.

    tilt_deg: Gantry/Detector Tilt, degrees.
    spacing_between_slices_mm: the spacing that the scanner states, to compare with the positions.
    rescale_type: Rescale Type, such as "HU"; empty means HU for CT.
    lossy: the pixels went through lossy compression at some time.
    quality_control: Quality Control Image is YES.
    derivation: Derivation Description.
    images_in_acquisition: how many images the scanner says it made, 0 if it does not say.
    equipment: (manufacturer, model) of the device that made the images and of all that contributed to any of them.
    age_years: Patient's Age; None for one that is missing, malformed or 0 years.
    reconstruction_diameter_mm: the field of view that the scanner says it reconstructed.
    number_step: the step of the instance numbers if it is the same from each slice to the next, else 0.
    software: Software Versions.  kv: tube voltage, kV.  mas: exposure, mAs, in the scanner's own meaning of it.
    """

    modality: str = ""
    image_type: tuple[str, ...] = ()
    body_part: str = ""
    manufacturer: str = ""
    manufacturer_model: str = ""
    kernel: str = ""
    slice_thickness_mm: float | None = None
    series_description: str = ""
    study_description: str = ""
    protocol_name: str = ""
    patient_position: str = ""
    burned_in: bool = False
    contrast: bool = False
    transfer_syntax_uid: str = ""
    has_rescale: bool = True
    bits_stored: int = 16
    sop_class_uid: str = ""
    rescale_type: str = ""
    spacing_between_slices_mm: float | None = None
    tilt_deg: float | None = None
    lossy: bool = False
    quality_control: bool = False
    derivation: str = ""
    image_comments: str = ""
    acquisition_number: str = ""
    images_in_acquisition: int = 0
    equipment: frozenset[tuple[str, str]] = frozenset()
    number_step: int = 0
    age_years: float | None = None
    reconstruction_diameter_mm: float | None = None
    software: str = ""
    kv: float | None = None
    mas: float | None = None


@dataclass(frozen=True)
class CTVolume:
    """One complete CT volume in Hounsfield units.

    hu: int16 (Z, Y, X). z ascends along the slice normal, oriented towards the patient's head; rows and
        columns are exactly as stored, never flipped. Each slice is its stored values times its slope plus
        its intercept, rounded to the nearest integer and clipped to int16. Padding outside the field of
        view keeps its value if that is at or below -900 HU (often -2000 or -3024), because every window
        then shows it as air. A padding value that would read as tissue is set to -1024.
    spacing_mm: (z, y, x).
    affine: float64 (4, 4), voxel index (x, y, z, 1) to the voxel centre in LPS millimetres.
    slices: one per z.
    dropped: SOP Instance UIDs of exact duplicates that were left out.
    rescale: (slope, intercept) per z as stored; empty means (1, 0) for all.
    part: which part of a series of several volumes this is, in words; empty for the usual whole series.
    passed_over: SOP Instance UIDs of the series' other volumes, when `part` is set.
    flipped: whether `upright` reversed the stored rows and columns (down, across).
    """

    hu: npt.NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    affine: npt.NDArray[np.float64]
    slices: tuple[SourceSlice, ...]
    series_instance_uid: str
    study_instance_uid: str
    header: SeriesHeader = field(default_factory=SeriesHeader)
    dropped: tuple[str, ...] = ()
    rescale: tuple[tuple[float, float], ...] = ()
    part: str = ""
    passed_over: tuple[str, ...] = ()
    flipped: tuple[bool, bool] = (False, False)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        z, y, x = self.spacing_mm
        return z * y * x / 1000.0

    def digest(self) -> str:
        """SHA-256 hex over voxels and geometry: equal for two encodings of the same volume."""
        sha = hashlib.sha256(repr((self.hu.shape, (np.round(self.affine, 3) + 0.0).tolist())).encode())
        sha.update(np.ascontiguousarray(self.hu).data)
        return sha.hexdigest()

    def clamp_stored(self, low: float, below: float, high: float, above: float) -> npt.NDArray[np.int16]:
        """HU as if, before the rescale, stored values under `low` had been `below` and those over `high` `above`.

        low, below, high, above: stored values (not HU), from a profile that clamps before the rescale.
        Returns (Z, Y, X) int16, `hu` itself if nothing changes. Each limit is converted to HU with the slice's
        own slope and intercept and compared there. This is exact if |slope| >= 1 or if slope and intercept are
        whole numbers, and within one HU of the limits otherwise. Values clipped to int16 stay on their side of
        any limit within int16.
        """
        clamped = self.hu
        for z in range(self.hu.shape[0]):
            slope, intercept = self.rescale[z] if self.rescale else (1.0, 0.0)
            low_hu, below_hu, high_hu, above_hu = (slope * value + intercept for value in (low, below, high, above))
            plane = self.hu[z]
            if plane.min() >= low_hu and plane.max() <= high_hu:
                continue
            if clamped is self.hu:
                clamped = self.hu.copy()
            clamped[z][plane < low_hu] = min(max(round(below_hu), -32768), 32767)
            clamped[z][plane > high_hu] = min(max(round(above_hu), -32768), 32767)
        return clamped


def upright(volume: CTVolume) -> CTVolume:
    """The volume with rows running to the patient's left and columns to the back, according to its own geometry.

    Scanners store images of prone and feet-first patients either this way, or turned or mirrored with an orientation
    that says so. Returns the volume itself if nothing needs reversing, or if rows run from front to back.
    """
    across, down = (float(volume.affine[axis, axis]) / volume.spacing_mm[2 - axis] for axis in (0, 1))
    if min(abs(across), abs(down)) < 0.99 or (across > 0 and down > 0):
        return volume
    steps = (1, -1 if down < 0 else 1, -1 if across < 0 else 1)
    _, rows, columns = volume.hu.shape
    turn = np.diag([float(steps[2]), float(steps[1]), 1.0, 1.0])
    turn[:2, 3] = [columns - 1 if across < 0 else 0, rows - 1 if down < 0 else 0]
    hu = np.ascontiguousarray(volume.hu[:, :: steps[1], :: steps[2]])
    return replace(volume, hu=hu, affine=volume.affine @ turn, flipped=(down < 0, across < 0))


def as_stored(array: npt.NDArray[Any], upright_volume: CTVolume) -> npt.NDArray[Any]:
    """Bring an array (Z, Y, X) from the grid of `upright`'s result back to the grid of the stored images."""
    down, across = upright_volume.flipped
    return np.ascontiguousarray(array[:, :: -1 if down else 1, :: -1 if across else 1])
