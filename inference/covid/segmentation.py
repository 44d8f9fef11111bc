"""Runs the U-Net on a volume's slices: float32 on the verdict's, a faster format on the others if allowed."""

import numpy as np
import numpy.typing as npt

from inference.arrays import Grey
from inference.covid.kept_masks import KeptMasks
from inference.device import Device, one_thread
from inference.interrupt import checkpoint
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

    def raw_masks(self, grey: Grey, chosen: npt.NDArray[np.intp] | None = None, kept: KeptMasks | None = None) -> Grey:
        """The U-Net's masks on the grid of `grey`: uint8 (T, Y, X), 0 in slices that are not chosen.

        chosen: indices of slices; None means all of them.
        kept: what was computed of the same slices before; the masks are the same with or without it.
        """
        every = np.arange(len(grey), dtype=np.intp) if chosen is None else chosen
        start, stop = verdict_range(len(grey), self._profile.slices)
        inside = (every >= start) & (every < stop)
        result = np.zeros_like(grey)
        for indices, engine in self.engines(every, inside):
            left = indices if kept is None else indices[~kept.fill(result, grey, indices, engine.precision)]
            for first in range(0, len(left), _SLICES_AT_ONCE):
                checkpoint()
                part = left[first : first + _SLICES_AT_ONCE]
                result[part] = self._masks(grey[part], engine)
        return result

    def kept_masks(self, grey: Grey, chosen: npt.NDArray[np.intp], kept: KeptMasks) -> Grey | None:
        """What `raw_masks` gives for these slices, if all of their masks were computed before; else None."""
        start, stop = verdict_range(len(grey), self._profile.slices)
        result = np.zeros_like(grey)
        engines = self.engines(chosen, (chosen >= start) & (chosen < stop))
        there = all(kept.fill(result, grey, indices, engine.precision).all() for indices, engine in engines)
        return result if there else None

    def keep_ahead(self, grey: Grey, inside: npt.NDArray[np.bool_], kept: KeptMasks) -> None:
        """Compute masks for a later `raw_masks`.

        grey: uint8 (n, Y, X), some slices.  inside: which of them the verdict will probably be made from.
        """
        for indices, engine in self.engines(np.arange(len(grey), dtype=np.intp), inside):
            if len(indices):
                kept.add(grey[indices], self._masks(grey[indices], engine), engine.precision)

    def engines(
        self, indices: npt.NDArray[np.intp], inside: npt.NDArray[np.bool_]
    ) -> tuple[tuple[npt.NDArray[np.intp], UnetEngine], ...]:
        """Which engine computes which slices.  inside: those that the verdict is made from."""
        if self.reporting is self.unet:
            return ((indices, self.unet),)
        return (indices[inside], self.unet), (indices[~inside], self.reporting)

    def _masks(self, grey: Grey, engine: UnetEngine) -> Grey:
        """An engine's masks: uint8 (n, Y, X) both."""
        unet = self._profile.unet
        with one_thread():
            slices = resize_slices(
                grey, unet.size, unet.interpolation_order, self._device.torch_device, self._device.cpu_threads
            )
        return nearest_pixels(engine.masks(slices), (grey.shape[1], grey.shape[2]))
