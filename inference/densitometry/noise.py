"""How noisy the lungs are: noise carries lung of normal density below the threshold.

Less dose, and so more noise, raises the share of low attenuation: den Harder et al. 2018,
doi:10.1186/s41747-018-0064-3.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.arrays import Mask
from inference.densitometry.lungs import Lungs

# A window that holds no vessel shows noise alone. Most windows do, so that the commonest spread is that of noise.
_WINDOW_MM, _SMALLEST_WINDOW, _MOST_SLICES = 6.0, 5, 40
_HIGHEST_HU, _FEWEST_WINDOWS = 200, 500
_SMOOTHING = np.array([1.0, 2.0, 3.0, 2.0, 1.0])


def noise_in(hu: npt.NDArray[np.int16], lungs: Lungs, spacing_mm: tuple[float, float, float]) -> float | None:
    """The commonest standard deviation of small windows in plane that lie in the parenchyma, HU; None if there are few.

    hu: (Z, Y, X).  At most 40 slices are looked at, evenly through the lungs.
    Source: the global noise level of Christianson et al., AJR 2015, measured in lung instead of soft tissue.
    """
    z, y, x = lungs.box
    step = max(1, (z.stop - z.start) // _MOST_SLICES)
    levels = range(z.start + step // 2, z.stop, step)
    return noise_of(((hu[level, y, x], lungs.parenchyma[level, y, x]) for level in levels), spacing_mm[1:])


def noise_of(planes: Iterable[tuple[npt.NDArray[np.int16], Mask]], pixel_mm: tuple[float, float]) -> float | None:
    """The same of some slices. planes: HU and parenchyma of each, (Y, X).  pixel_mm: (y, x)."""
    size = [2 * max(_SMALLEST_WINDOW // 2, round(_WINDOW_MM / mm / 2)) + 1 for mm in pixel_mm]
    counts = np.zeros(_HIGHEST_HU + 1)
    for hu, inside in planes:
        if inside.any():
            counts += _spreads(hu, inside, size)
    if counts.sum() < _FEWEST_WINDOWS:
        return None
    smooth = np.convolve(counts, _SMOOTHING, "same")
    top = int(smooth[:-1].argmax())
    near = np.arange(max(0, top - 2), top + 3)
    return float(near @ smooth[near] / smooth[near].sum())


def _spreads(hu: npt.NDArray[np.int16], inside: npt.NDArray[np.bool_], size: list[int]) -> npt.NDArray[np.int64]:
    """How many windows of one slice have each whole standard deviation; the last count is of all above."""
    plane = np.where(inside, hu, 0).astype(np.float32)
    mean, square = (ndimage.uniform_filter(one, size) for one in (plane, plane * plane))
    whole = ndimage.minimum_filter(inside.view(np.uint8), size).view(np.bool_)
    samples = size[0] * size[1]
    variance = (square[whole] - mean[whole] ** 2) * samples / (samples - 1)
    spread = np.sqrt(np.maximum(variance, 0.0))
    return np.bincount(np.minimum(np.rint(spread), _HIGHEST_HU).astype(np.int64), minlength=_HIGHEST_HU + 1)
