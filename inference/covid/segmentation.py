"""Runs the U-Net on a volume's slices: float32 on the verdict's, a faster format on the others if allowed."""

import numpy as np
import numpy.typing as npt

from inference.arrays import Grey
from inference.device import Device, one_thread
from inference.lungs.engine import UnetEngine
from inference.models.profile import Profile
from inference.preprocess import nearest_pixels, resize_slices, verdict_range

# Slices passed to an engine at once: this bounds the copies in memory, and keeps a GPU busy.
_SLICES_AT_ONCE = 128


class Segmentation:
    """A U-Net on a device, ready for slices.

    unet: for the verdict's slices.  reporting: for those that only the reported mask needs; may be the same.
    """

    def __init__(self, unet: UnetEngine, reporting: UnetEngine, profile: Profile, device: Device) -> None:
        self.unet = unet
        self.reporting = reporting
        self._profile = profile
        self._device = device

    @property
    def precision(self) -> str:
        """Number formats in words, for the report."""
        verdict, reporting = self.unet.precision, self.reporting.precision
        return verdict if verdict == reporting else f"{verdict}, {reporting} outside the verdict's slices"

    def raw_masks(self, grey: Grey, chosen: npt.NDArray[np.intp] | None = None) -> Grey:
        """The U-Net's masks on the grid of `grey`: uint8 (T, Y, X), 0 in slices that are not chosen.

        chosen: indices of slices; None means all of them.
        """
        every = np.arange(len(grey), dtype=np.intp) if chosen is None else chosen
        if self.reporting is self.unet:
            return self._masked(grey, every, self.unet)
        start, stop = verdict_range(len(grey), self._profile.slices)
        inside = (every >= start) & (every < stop)
        return self._masked(grey, every[inside], self.unet) | self._masked(grey, every[~inside], self.reporting)

    def _masked(self, grey: Grey, chosen: npt.NDArray[np.intp], engine: UnetEngine) -> Grey:
        """An engine's masks of the chosen slices, 0 elsewhere: uint8 (T, Y, X)."""
        unet, size = self._profile.unet, (grey.shape[1], grey.shape[2])
        result = np.zeros_like(grey)
        for start in range(0, len(chosen), _SLICES_AT_ONCE):
            part = chosen[start : start + _SLICES_AT_ONCE]
            with one_thread():
                slices = resize_slices(grey[part], unet.size, unet.interpolation_order, self._device.torch_device)
            result[part] = nearest_pixels(engine.masks(slices), size)
        return result
