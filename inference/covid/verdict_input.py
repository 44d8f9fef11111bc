"""From grey slices and the U-Net's mask to DeCoVNet's input: which slices, which crop, which size."""

import numpy as np
import numpy.typing as npt
import torch

from config.reasons import ReasonCode
from inference.arrays import Box, Grey
from inference.errors import UnsuitableSeries
from inference.lungs.mask import clean
from inference.models.profile import Profile
from inference.preprocess import CPU, mask_box, nearest_resampled, resize_slices, verdict_range


def needed_slices(slices: int, count: int, profile: Profile) -> npt.NDArray[np.intp]:
    """Indices of the resampled slices that a result needs: the verdict's, and those nearest to source slices."""
    start, stop = verdict_range(count, profile.slices)
    return np.union1d(nearest_resampled(slices, count), np.arange(start, stop, dtype=np.intp))


def on_source_slices(raw: Grey, slices: int, profile: Profile) -> Grey:
    """The U-Net's mask on the source slices: uint8 (Z, Y, X), each taken from its nearest resampled slice."""
    nearest = nearest_resampled(slices, len(raw))
    on_source = raw if np.array_equal(nearest, np.arange(len(raw))) else raw[nearest]
    return on_source[::-1] if profile.slices.order == "descending" else on_source


def verdict_source_slices(slices: int, count: int, profile: Profile) -> slice:
    """Which of `slices` source slices lie nearest to the verdict's slices, out of `count` resampled ones."""
    start, stop = verdict_range(count, profile.slices)
    nearest = nearest_resampled(slices, count)
    inside = np.flatnonzero((nearest >= start) & (nearest < stop))
    low, high = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, slices)
    return slice(slices - high, slices - low) if profile.slices.order == "descending" else slice(low, high)


def decovnet_input(grey: Grey, raw: Grey, profile: Profile) -> tuple[Grey, Grey]:
    """Image and mask of the slices that the verdict is made from, cropped: uint8 (T, Y, X) both.

    Raises UnsuitableSeries if there are too few slices, or no lung in them.
    """
    start, stop = verdict_range(len(grey), profile.slices)
    mask = verdict_mask(raw[start:stop], profile)
    box = _crop(mask, profile)
    image, mask = grey[start:stop][box], mask[box]
    if len(image) < 2:
        raise UnsuitableSeries(ReasonCode.TOO_FEW_SLICES, "Fewer than 2 slices are left for the verdict.")
    return image, mask


def verdict_box(raw: Grey, profile: Profile) -> Box:
    """Where `decovnet_input` lies among the resampled slices."""
    start, stop = verdict_range(len(raw), profile.slices)
    z, y, x = _crop(verdict_mask(raw[start:stop], profile), profile)
    return slice(start + z.start, start + z.stop), y, x


def verdict_mask(raw: Grey, profile: Profile) -> Grey:
    """The mask that DeCoVNet gets, as the profile asks for it. raw: the U-Net's, in the verdict's slices."""
    return clean(raw).view(np.uint8) if profile.decovnet.mask == "cleaned" else raw


def _crop(mask: Grey, profile: Profile) -> Box:
    if profile.decovnet.crop == "mask-box" and len(mask):
        return mask_box(mask)
    return slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])


def resized(
    image: Grey, mask: Grey, profile: Profile, device: torch.device = CPU, threads: int = 1
) -> tuple[Grey, Grey]:
    """Image and mask resized for DeCoVNet: uint8 (T, rows, columns), the mask 0 or 1.

    device, threads: where to compute, see `resize_slices`.
    """
    size, order = profile.decovnet.size, profile.decovnet.interpolation_order
    image, mask = (resize_slices(slices, size, order, device, threads) for slices in (image, mask))
    return image, np.minimum(mask, 1)
