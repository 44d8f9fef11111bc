"""From HU to the networks' inputs: pure functions on arrays, each step a field of the model card's profile."""

from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from config.reasons import ReasonCode
from inference.arrays import Box, Grey
from inference.device import workers
from inference.errors import UnsuitableSeries
from inference.interrupt import checkpoint
from inference.models.profile import Circle, Intensity, Profile, Slices
from inference.volume.ct_volume import CTVolume

Weights = npt.NDArray[np.float64]

# A sample's influence on a cubic spline shrinks by a factor of 0.27 per step; beyond 24 steps float64 loses it.
_NEGLIGIBLE = 1e-14
_SLICES_AT_ONCE = 8
_RESIZED_AT_ONCE = 16
CPU = torch.device("cpu")


def greys(volume: CTVolume, profile: Profile, device: torch.device = CPU) -> Grey:
    """The volume as 8-bit grey slices in the profile's order and spacing.

    device: where resampling is computed.
    Returns uint8 (T, Y, X): clamp, circle, resampling along z, then the window.
    Source: Zheng et al. 2020, "Preprocessing of 2D UNet", and the published checkpoints' preprocessing.
    """
    hu = ordered_hu(volume, profile)
    count = resampled_count(len(hu), volume.spacing_mm[0], profile.slices)
    result = np.empty((count, *hu.shape[1:]), np.uint8)
    for wanted, near in resampling_parts(len(hu), count, profile.slices):
        result[wanted] = grey_part(hu[near], wanted, near, (len(hu), count), profile, device)
    return result


def ordered_hu(volume: CTVolume, profile: Profile) -> npt.NDArray[np.int16]:
    """The volume's HU within the profile's limits and in its order: int16 (Z, Y, X)."""
    hu = clamped(volume, profile.intensity)
    return hu[::-1] if profile.slices.order == "descending" else hu


def resampling_parts(slices: int, count: int, profile: Slices) -> Iterator[tuple[slice, slice]]:
    """Which of `count` resampled slices are computed together, and the range of source slices that they need.

    A part needs only the slices near it, so the cost per slice does not grow with the number of slices.
    """
    for start in range(0, count, _SLICES_AT_ONCE):
        wanted = slice(start, min(start + _SLICES_AT_ONCE, count))
        if count == slices:
            yield wanted, wanted
            continue
        weights = _operator(count, slices, profile.interpolation_order, "nearest").numpy()[wanted]
        used = np.flatnonzero(np.abs(weights).max(axis=0) > _NEGLIGIBLE)
        yield wanted, slice(int(used[0]), int(used[-1]) + 1)


def grey_part(
    hu: npt.NDArray[np.int16],
    wanted: slice,
    near: slice,
    counts: tuple[int, int],
    profile: Profile,
    device: torch.device = CPU,
) -> Grey:
    """Some of the resampled slices as grey values: uint8 (T, Y, X).

    hu: the source slices `near`, of `ordered_hu`.  wanted: which resampled slices; see `resampling_parts`.
    counts: how many slices the whole volume has, and how many it has resampled.
    """
    slices, count = counts
    part = np.ascontiguousarray(hu)
    if count != slices:
        weights = _operator(count, slices, profile.slices.interpolation_order, "nearest").numpy()[wanted, near]
        part = _weighted(weights, hu.reshape(len(hu), -1), device).reshape(-1, *hu.shape[1:])
    intensity = profile.intensity
    table = grey_table(intensity.window_hu)
    grey = np.empty(part.shape, np.uint8)
    outside = np.flatnonzero(outside_circle(hu.shape[1], hu.shape[2], intensity.circle))
    # Resampling keeps constants, so lowering the corners afterwards gives the same as lowering them before.
    lowered = _lowered(table, intensity.circle.lower_by_hu if intensity.circle else 0)
    # A slice at a time, because the look-up copies its indices to 64 bits.
    for values, looked_up in zip(part.view(np.uint16).reshape(len(part), -1), grey.reshape(len(part), -1), strict=True):
        table.take(values, out=looked_up, mode="wrap")  # no index is out of range, and it is not copied to look
        looked_up[outside] = lowered.take(values[outside])
    return grey


def _lowered(table: Grey, by_hu: int) -> Grey:
    """Of the grey values by HU, those of HU that are lowered first."""
    hu = np.arange(65536, dtype=np.uint16).view(np.int16)
    return table[(np.maximum(hu, -32768 + by_hu) - by_hu).view(np.uint16)]


@cache
def grey_table(window_hu: tuple[float, float]) -> Grey:
    """Grey value of every int16 HU value, indexed by its bits as uint16: uint8 (65536,)."""
    low, high = window_hu
    hu = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float64)
    return np.floor(255 * np.clip((hu - low) / (high - low), 0, 1)).astype(np.uint8)


@lru_cache(maxsize=8)
def outside_circle(rows: int, columns: int, circle: Circle | None) -> npt.NDArray[np.bool_]:
    """Pixels on or outside the reconstruction circle, which is scaled from its own matrix: bool (Y, X)."""
    if circle is None:
        return np.zeros((rows, columns), bool)
    y, x = np.ogrid[:rows, :columns]
    down, across = rows / circle.matrix, columns / circle.matrix
    distance = (y / down - circle.centre_px[0]) ** 2 + (x / across - circle.centre_px[1]) ** 2
    result = np.asarray(distance >= circle.radius_px**2)
    result.setflags(write=False)
    return result


def resampled_count(slices: int, spacing_mm: float, profile: Slices) -> int:
    """How many slices there are after resampling to the profile's spacing, at least 1."""
    if profile.spacing_mm is None:
        return slices
    return max(1, round(slices * spacing_mm / profile.spacing_mm))


def nearest_resampled(slices: int, count: int) -> npt.NDArray[np.intp]:
    """The resampled slice nearest to each source slice: intp (slices,), each 0 to count - 1."""
    if slices == 1:
        return np.zeros(1, np.intp)
    return np.floor(np.arange(slices) * (count - 1) / (slices - 1) + 0.5).astype(np.intp)


def verdict_range(count: int, profile: Slices) -> tuple[int, int]:
    """First and one past the last of the resampled slices that the verdict is made from."""
    start, stop = int(profile.lung_range[0] * count), int(profile.lung_range[1] * count)
    chosen = stop - start
    return start + int(profile.verdict_range[0] * chosen), start + int(profile.verdict_range[1] * chosen)


def mask_box(mask: Grey) -> Box:
    """The mask's bounding box; each upper bound excludes the last index, as in the published model.

    mask: uint8 (T, Y, X), not 0 in the lung. One stray pixel moves the box.
    Raises UnsuitableSeries (NO_LUNG_MASK) if the box holds no voxel.
    """
    box = []
    for others in ((1, 2), (0, 2), (0, 1)):
        found = np.flatnonzero(mask.any(axis=others))
        if len(found) < 2:
            raise UnsuitableSeries(
                ReasonCode.NO_LUNG_MASK, "The network found no lung in the slices that the verdict is from."
            )
        box.append(slice(int(found[0]), int(found[-1])))
    return box[0], box[1], box[2]


def resize_slices(
    slices: Grey, size: tuple[int, int], order: int = 3, device: torch.device = CPU, threads: int = 1
) -> Grey:
    """Resize each slice with splines as `scipy.ndimage.zoom` does, but by two matrix products.

    slices: uint8 (T, Y, X), grey values or a mask.  size: rows and columns wanted.  device: where to compute.
    threads: that share the slices; the result is the same for any number, and there are checkpoints if several do.
    Returns uint8 (T, rows, columns), halves rounded up, clipped to 0..255.
    """
    if slices.shape[1:] == size:
        return slices
    down = _operator(size[0], slices.shape[1], order, "constant").to(device)
    across = _operator(size[1], slices.shape[2], order, "constant").T.contiguous().to(device)
    result = np.empty((len(slices), *size), np.uint8)

    def resize(plane: Grey, resized: Grey) -> None:
        values = down @ torch.from_numpy(np.ascontiguousarray(plane)).to(device).double() @ across
        resized[:] = values.add_(0.5).clamp_(0, 255).to(torch.uint8).cpu().numpy()

    if min(threads, len(slices)) < 2:
        for plane, resized in zip(slices, result, strict=True):
            resize(plane, resized)
        return result
    with workers(threads) as pool:
        for start in range(0, len(slices), _RESIZED_AT_ONCE):
            checkpoint()
            some = slice(start, start + _RESIZED_AT_ONCE)
            for _ in pool.map(resize, slices[some], result[some]):
                pass
    return result


@lru_cache(maxsize=64)
def spline_matrix(result: int, source: int, order: int = 3, edge: str = "constant") -> Weights:
    """The resize of one axis as a matrix: float64 (result, source).

    The zoom is linear in its input, so zooming an identity matrix gives the whole operator, edges included.
    edge: `scipy.ndimage.zoom`'s mode.
    """
    matrix = ndimage.zoom(np.eye(source), (result / source, 1), order=order, mode=edge)
    matrix.setflags(write=False)
    return np.asarray(matrix, np.float64)


def nearest_pixels(mask: Grey, size: tuple[int, int]) -> Grey:
    """A mask resized to another matrix by nearest pixels: uint8 (T, rows, columns)."""
    if mask.shape[1:] == size:
        return mask
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[1] / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[2] / size[1]).astype(np.intp)
    return mask[:, rows[:, None], columns]


def clamped(volume: CTVolume, intensity: Intensity) -> npt.NDArray[np.int16]:
    """HU after the profile's limits on stored values: (Z, Y, X) int16, the volume's own array if it has none."""
    clamp = intensity.raw_clamp
    if clamp is None or _cuts_window(clamp.high, intensity.window_hu[1], volume):
        return volume.hu
    return volume.clamp_stored(clamp.low, clamp.low_becomes, clamp.high, clamp.high)


def _cuts_window(high: float, window_high: float, volume: CTVolume) -> bool:
    """True if an upper limit on stored values lies below the window's upper edge in some slice.

    The limits are made for stored values near HU + 1024. With scanners that store HU + 8192 (United Imaging, photon
    counting) they would cut away all tissue. Nothing in the window needs the limits, so they are left out.
    """
    return any(slope * high + intercept < window_high for slope, intercept in volume.rescale)


def _weighted(weights: Weights, source: npt.NDArray[np.int16], device: torch.device) -> npt.NDArray[np.int16]:
    """weights @ source, rounded to the nearest integer, with halves away from zero as in scipy."""
    operator = torch.from_numpy(np.ascontiguousarray(weights)).to(device)
    result = np.empty((len(weights), source.shape[1]), np.int16)
    # Pixels at a time: float64 copies that stay in the CPU's cache.
    step = 16384 if device.type == "cpu" else source.shape[1]
    for start in range(0, source.shape[1], step):
        values = operator @ torch.from_numpy(np.ascontiguousarray(source[:, start : start + step])).to(device).double()
        values += torch.copysign(torch.tensor(0.5, dtype=torch.float64, device=device), values)
        result[:, start : start + step] = values.clamp_(-32768, 32767).to(torch.int16).cpu().numpy()
    return result


@lru_cache(maxsize=64)
def _operator(result: int, source: int, order: int, edge: str) -> torch.Tensor:
    """`spline_matrix` for PyTorch, whose matrix products use only the threads that a pipeline was given."""
    return torch.from_numpy(spline_matrix(result, source, order, edge).copy())
