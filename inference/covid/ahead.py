"""The U-Net's masks of slices that have arrived, while others of their series have not."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from inference.arrays import Grey
from inference.covid.kept_masks import KeptMasks
from inference.covid.segmentation import Segmentation
from inference.covid.verdict_input import needed_slices
from inference.device import Device, one_thread
from inference.models.profile import Profile
from inference.preprocess import grey_part, greys, ordered_hu, resampled_count, resampling_parts, verdict_range
from inference.volume.arriving import Arrived
from inference.volume.ct_volume import CTVolume, upright


class MasksAhead:
    """An `inference.ahead.Ahead` of U-Net and DeCoVNet.

    Where slices are analysed as they are, each is computed when it comes. Where they are resampled along z, that needs
    the slices around it and their number in the whole: then only what lies well inside is computed before the end.
    """

    def __init__(self, segmentation: Segmentation, profile: Profile, device: Device, max_bytes: int) -> None:
        self.kept = KeptMasks(max_bytes)
        self._segmentation = segmentation
        self._profile = profile
        self._device = device
        self._done: set[object] = set()

    @property
    def nbytes(self) -> int:
        """Memory of the masks."""
        return self.kept.nbytes

    def go_on(self, arrived: Arrived, *, settled: bool) -> bool:
        """See `inference.ahead.Ahead`."""
        count = resampled_count(arrived.whole, arrived.spacing_mm[0], self._profile.slices)
        if count == arrived.whole:
            return self._slices(arrived)
        # Of a series that does not say how many slices it has, the last known number is a guess until it settles.
        return self._resampled(arrived, count) if settled or len(arrived.places) < arrived.whole else False

    def _slices(self, arrived: Arrived) -> bool:
        """The next slices that have arrived, as they are."""
        left = [index for index, key in enumerate(arrived.keys) if key not in self._done][: 2 * self._device.threads]
        if not left:
            return False
        self._done |= {arrived.keys[index] for index in left}
        with one_thread():
            grey = greys(upright(arrived.volume(left)), _as_they_are(self._profile), self._device.torch_device)
        self._keep(grey, np.sort(self._in_order(arrived)[left]), arrived.whole)
        return True

    def _resampled(self, arrived: Arrived, count: int) -> bool:
        """The next part of the resampled slices for which all slices are there."""
        whole, slices = arrived.whole, self._profile.slices
        there = np.full(whole, -1, np.intp)
        there[self._in_order(arrived)] = np.arange(len(arrived.places))
        needed = needed_slices(whole, count, self._profile)
        for wanted, near in resampling_parts(whole, count, slices):
            chosen = np.intersect1d(np.arange(wanted.start, wanted.stop, dtype=np.intp), needed)
            ours = np.sort(there[near])
            key = (count, wanted.start, *(arrived.keys[index] for index in ours))
            if len(chosen) and ours[0] >= 0 and key not in self._done:
                self._done.add(key)
                grey = self._grey(arrived.volume(ours), wanted, near, (whole, count))
                self._keep(grey[chosen - wanted.start], chosen, count)
                return True
        return False

    def _grey(self, volume: CTVolume, wanted: slice, near: slice, counts: tuple[int, int]) -> Grey:
        with one_thread():
            hu = ordered_hu(upright(volume), self._profile)
            return grey_part(hu, wanted, near, counts, self._profile, self._device.torch_device)

    def _keep(self, grey: Grey, indices: npt.NDArray[np.intp], count: int) -> None:
        """Compute the masks of some slices.  indices: theirs among the `count` of the whole, in the profile's order."""
        start, stop = verdict_range(count, self._profile.slices)
        self._segmentation.keep_ahead(grey, (indices >= start) & (indices < stop), self.kept)

    def _in_order(self, arrived: Arrived) -> npt.NDArray[np.intp]:
        """The place of each slice in the order of the profile."""
        descending = self._profile.slices.order == "descending"
        return arrived.whole - 1 - arrived.places if descending else arrived.places


def _as_they_are(profile: Profile) -> Profile:
    return replace(profile, slices=replace(profile.slices, spacing_mm=None))
