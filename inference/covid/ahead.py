"""What the networks can say of slices that have arrived, while others of their series have not."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from inference.arrays import Grey
from inference.covid.judging import Judging
from inference.covid.kept import Kept
from inference.covid.segmentation import Segmentation
from inference.covid.verdict_input import needed_slices
from inference.device import Device, one_thread
from inference.errors import UnsuitableSeries
from inference.interrupt import Interrupted
from inference.models.profile import Profile
from inference.preprocess import grey_part, greys, ordered_hu, resampled_count, resampling_parts, verdict_range
from inference.volume.arriving import Arrived
from inference.volume.ct_volume import CTVolume, upright

Part = tuple[slice, slice, npt.NDArray[np.intp]]
"""Some resampled slices: which ones, the source slices that they need, and which of those that are there these are."""

MOST_SLICES = 4000
"""More than any chest has. How many there will be is what a header, a PACS or two positions say, and memory grows with
its square."""


class MasksAhead:
    """An `inference.ahead.Ahead` of U-Net and DeCoVNet.

    Where slices are analysed as they are, each one's mask is computed when it comes. Where they are resampled along z,
    that needs the slices around it and their number in the whole: then only what lies well inside is computed before
    the end. If that number is known, the slices that the verdict is made from may all be there long before the end:
    then DeCoVNet sees them as soon as they have their masks.
    """

    def __init__(
        self, segmentation: Segmentation, judging: Judging, profile: Profile, device: Device, max_bytes: int
    ) -> None:
        self.kept = Kept(max_bytes)
        self._segmentation = segmentation
        self._judging = judging
        self._profile = profile
        self._device = device
        self._done: set[object] = set()
        self._verdict_of: object = None
        self._verdict: Iterator[None] = iter(())

    @property
    def nbytes(self) -> int:
        """Memory of the masks."""
        return self.kept.masks.nbytes

    def go_on(self, arrived: Arrived, *, settled: bool) -> bool:
        """See `inference.ahead.Ahead`."""
        count = resampled_count(arrived.whole, arrived.spacing_mm[0], self._profile.slices)
        if max(arrived.whole, count) > MOST_SLICES:
            return False
        # Of a series that does not say how many slices it has, the last known number is a guess until it settles.
        known = len(arrived.places) < arrived.whole
        judges = known and not settled
        if count == arrived.whole:
            # The verdict first: the slices that come meanwhile are then computed together, one by each thread.
            left = self._left(arrived)
            return (judges and self._verdict_step(arrived, count, left)) or self._slices(arrived, left)
        found = (settled or known) and self._resampled(arrived, count)
        return found or (judges and self._verdict_step(arrived, count))

    def _left(self, arrived: Arrived) -> list[int]:
        """Slices that have arrived and have no mask."""
        return [index for index, key in enumerate(arrived.keys) if key not in self._done]

    def _slices(self, arrived: Arrived, left: list[int]) -> bool:
        """The masks of the next slices, as they are."""
        left = left[: 2 * self._device.threads]
        if not left:
            return False
        with one_thread():
            grey = greys(upright(arrived.volume(left)), _as_they_are(self._profile), self._device.torch_device)
        self._keep(grey, np.sort(self._in_order(arrived)[left]), arrived.whole)
        self._done |= {arrived.keys[index] for index in left}
        return True

    def _verdict_step(self, arrived: Arrived, count: int, left: Sequence[int] = ()) -> bool:
        """A part of the verdict, if all of its slices are there.  left: slices without a mask."""
        start, stop = verdict_range(count, self._profile.slices)
        parts = self._parts(arrived, count, start, stop)
        if not parts or any((ours < 0).any() or np.isin(ours, left).any() for _, _, ours in parts):
            return False
        made_from = (count, start, stop, *(arrived.keys[index] for _, _, ours in parts for index in ours))
        if made_from != self._verdict_of:
            self._verdict_of, self._verdict = made_from, self._verdict_steps(arrived, count, parts)
        try:
            return next(self._verdict, False) is None
        except UnsuitableSeries:
            return False
        except Interrupted:
            self._verdict_of = None  # what has been found is kept, and the rest is not given up
            raise

    def _verdict_steps(self, arrived: Arrived, count: int, parts: list[Part]) -> Iterator[None]:
        start, stop = verdict_range(count, self._profile.slices)
        grey: Grey | None = None
        for wanted, near, ours in parts:
            part = self._grey(arrived.volume(np.sort(ours)), wanted, near, (arrived.whole, count))
            grey = np.zeros((count, *part.shape[1:]), np.uint8) if grey is None else grey
            grey[wanted] = part
        if grey is None:
            return
        del arrived  # whoever decoded its slices drops them long before this ends
        raw = self._segmentation.kept_masks(grey, np.arange(start, stop, dtype=np.intp), self.kept.masks)
        if raw is None:  # there was no room for some: computing them again here would let a job wait
            return
        self.kept.results.begin(grey[start:stop], raw[start:stop])
        yield from self._judging.ahead(grey, raw, self.kept.results)

    def _parts(self, arrived: Arrived, count: int, start: int, stop: int) -> list[Part]:
        """The parts that hold the resampled slices from `start` to `stop`."""
        there = np.full(arrived.whole, -1, np.intp)
        there[self._in_order(arrived)] = np.arange(len(arrived.places))
        parts = resampling_parts(arrived.whole, count, self._profile.slices)
        return [(wanted, near, there[near]) for wanted, near in parts if wanted.start < stop and start < wanted.stop]

    def _resampled(self, arrived: Arrived, count: int) -> bool:
        """The next part of the resampled slices for which all slices are there."""
        needed = needed_slices(arrived.whole, count, self._profile)
        for wanted, near, ours in self._parts(arrived, count, 0, count):
            chosen = np.intersect1d(np.arange(wanted.start, wanted.stop, dtype=np.intp), needed)
            ours = np.sort(ours)
            key = (count, wanted.start, *(arrived.keys[index] for index in ours))
            if len(chosen) and ours[0] >= 0 and key not in self._done:
                grey = self._grey(arrived.volume(ours), wanted, near, (arrived.whole, count))
                self._keep(grey[chosen - wanted.start], chosen, count)
                self._done.add(key)
                return True
        return False

    def _grey(self, volume: CTVolume, wanted: slice, near: slice, counts: tuple[int, int]) -> Grey:
        with one_thread():
            hu = ordered_hu(upright(volume), self._profile)
            return grey_part(hu, wanted, near, counts, self._profile, self._device.torch_device)

    def _keep(self, grey: Grey, indices: npt.NDArray[np.intp], count: int) -> None:
        """Compute the masks of some slices.  indices: theirs among the `count` of the whole, in the profile's order."""
        start, stop = verdict_range(count, self._profile.slices)
        self._segmentation.keep_ahead(grey, (indices >= start) & (indices < stop), self.kept.masks)

    def _in_order(self, arrived: Arrived) -> npt.NDArray[np.intp]:
        """The place of each slice in the order of the profile."""
        descending = self._profile.slices.order == "descending"
        return arrived.whole - 1 - arrived.places if descending else arrived.places


def _as_they_are(profile: Profile) -> Profile:
    return replace(profile, slices=replace(profile.slices, spacing_mm=None))
