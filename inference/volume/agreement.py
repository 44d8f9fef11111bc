"""What all frames of one volume have in common: subject, orientation, matrix, pixel spacing and reconstruction."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from config.reasons import ReasonCode
from inference.errors import UnsuitableSeries
from inference.volume.instances import Frame

# Direction cosines are written with 4 to 6 decimals; 0.005 is 0.3 degrees, 1 mm at the edge of a 400 mm image.
COSINE_TOLERANCE = 0.005
# Pixel spacing within one series is rounded too; two reconstructions of one scan differ by more than 1%.
PIXEL_SPACING_TOLERANCE = 1e-3
# Slice thickness within one reconstruction, as a share: scanners write 0.6 and 0.625 for the same.
THICKNESS_TOLERANCE = 0.1
_LOCALIZER = "LOCALIZER"


def same_subject(frames: Sequence[Frame]) -> None:
    """One series, study, patient, frame of reference and scanner. Raises UnsuitableSeries MIXED_..."""
    identities: list[tuple[ReasonCode, Callable[[Frame], str], str]] = [
        (ReasonCode.MIXED_SERIES, lambda frame: frame.instance.series_instance_uid, "series"),
        (ReasonCode.MIXED_SERIES, lambda frame: frame.instance.study_instance_uid, "studies"),
        (ReasonCode.MIXED_PATIENTS, lambda frame: frame.instance.patient, "patients"),
        (
            ReasonCode.MIXED_FRAMES_OF_REFERENCE,
            lambda frame: frame.instance.frame_of_reference_uid,
            "frames of reference",
        ),
        (ReasonCode.MIXED_SCANNERS, lambda frame: frame.header.manufacturer_model, "scanner models"),
    ]
    for code, identity, what in identities:
        count = len({identity(frame) for frame in frames})
        if count > 1:
            raise UnsuitableSeries(code, f"The images belong to {count} different {what}; one volume has one.")


def every_frame_has_geometry(frames: Sequence[Frame]) -> None:
    """Raises UnsuitableSeries NO_POSITION."""
    lacking = sum(
        frame.position_mm is None or frame.orientation is None or frame.spacing_mm is None for frame in frames
    )
    if lacking:
        raise UnsuitableSeries(
            ReasonCode.NO_POSITION,
            f"{lacking} of {len(frames)} images lack a position, an orientation or a pixel spacing that can be used.",
        )


def no_localizers(frames: Sequence[Frame]) -> None:
    """Raises UnsuitableSeries LOCALIZER."""
    count = sum(_LOCALIZER in frame.header.image_type or "SCOUT" in frame.header.image_type for frame in frames)
    if count:
        raise UnsuitableSeries(ReasonCode.LOCALIZER, f"{count} of {len(frames)} images are localizers, not slices.")


def common_axes(
    frames: Sequence[Frame],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Row direction, column direction and the normal, turned towards the patient's head."""
    orientations = np.array([frame.orientation for frame in frames], dtype=np.float64)
    common = np.median(orientations, axis=0)
    away = np.abs(orientations - common).max(axis=1) > COSINE_TOLERANCE
    if away.any():
        raise UnsuitableSeries(
            ReasonCode.MIXED_ORIENTATIONS,
            f"{int(away.sum())} of {len(frames)} images lie in another orientation than the rest.",
        )
    rows, columns = common[:3], common[3:]
    normal = np.cross(rows, columns)
    lengths = np.array([np.linalg.norm(rows), np.linalg.norm(columns), np.linalg.norm(normal)])
    if np.abs(lengths - 1).max() > COSINE_TOLERANCE or abs(rows @ columns) > COSINE_TOLERANCE:
        raise UnsuitableSeries(
            ReasonCode.BAD_ORIENTATION, "The images' row and column directions are not at right angles."
        )
    normal = normal / lengths[2]
    return rows, columns, -normal if normal[2] < 0 else normal


def common_grid(frames: Sequence[Frame]) -> tuple[float, float]:
    """(between rows, between columns) in mm, from the most common spacing."""
    matrices = {(frame.instance.pixels.rows, frame.instance.pixels.columns) for frame in frames}
    if len(matrices) > 1:
        raise UnsuitableSeries(
            ReasonCode.MIXED_MATRIX, f"The images have {len(matrices)} different numbers of rows and columns."
        )
    spacings = Counter(frame.spacing_mm for frame in frames if frame.spacing_mm)
    common = spacings.most_common(1)[0][0]
    for spacing in spacings:
        if any(abs(a - b) > PIXEL_SPACING_TOLERANCE * b for a, b in zip(spacing, common, strict=True)):
            raise UnsuitableSeries(ReasonCode.MIXED_PIXEL_SPACING, "The images have different pixel spacings.")
    return common


def one_reconstruction(frames: Sequence[Frame]) -> None:
    """One kernel and one thickness; slices that name none count as agreeing."""
    kernels = {frame.header.kernel for frame in frames} - {""}
    thicknesses = [mm for frame in frames if (mm := frame.header.slice_thickness_mm)]
    if len(kernels) > 1 or (thicknesses and max(thicknesses) > (1 + THICKNESS_TOLERANCE) * min(thicknesses)):
        raise UnsuitableSeries(
            ReasonCode.MIXED_RECONSTRUCTIONS, "The slices were reconstructed with different kernels or thicknesses."
        )


def one_scan_after_the_other(candidates: Sequence[Sequence[Frame]]) -> None:
    """Acquisitions may follow one another along the patient. Interleaved ones are several scans of one region."""
    numbers = [frames[0].header.acquisition_number for frames in candidates if len(frames) == 1]
    changes = sum(a != b for a, b in pairwise(numbers))
    if changes > 2 * max(0, len(set(numbers)) - 1):
        raise UnsuitableSeries(
            ReasonCode.MIXED_ACQUISITIONS,
            "Slices of several acquisitions lie between one another, so this is not one volume.",
        )
