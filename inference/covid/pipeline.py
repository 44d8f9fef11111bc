"""The chest CT pipeline: it takes a volume and gives a verdict, or a named reason why not."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol, TypeVar

import numpy as np
import torch

from inference.anatomy.confine import confine
from inference.arrays import Grey, Mask
from inference.covid.ahead import MasksAhead
from inference.covid.card import ZhengCard
from inference.covid.judging import Given, Judging
from inference.covid.kept import Kept, KeptResults
from inference.covid.localisation import Floats, Localisation, Localiser, NetworkInput, Placement
from inference.covid.segmentation import Segmentation
from inference.covid.streamed import StreamedDecovnet
from inference.covid.verdict import Verdict
from inference.covid.verdict_input import (
    decovnet_input,
    needed_slices,
    on_source_slices,
    verdict_box,
    verdict_source_slices,
)
from inference.device import Device, lacked_memory, naming_loss, one_thread
from inference.finding import Spread
from inference.interrupt import as_interruptible, checkpoint
from inference.lungs.mask import sides, without_specks
from inference.preprocess import greys, verdict_range
from inference.suitability.check import accept, check_mask
from inference.suitability.ground import check_crop, check_ground, outside_share
from inference.suitability.policy import Policy
from inference.volume.ct_volume import CTVolume, as_stored, upright

Result = TypeVar("Result")

_PACKAGES = ("torch", "numpy", "scipy", "openvino", "connected-components-3d")


class Timings:
    """Wall seconds by stage, in the order in which the stages began."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside the block to a stage. Raises Interrupted at its begin, see `checkpoint`."""
        checkpoint()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Pipeline:
    """A model on a device, ready for volumes.

    identity: which model it is.  segmentation: its U-Net.  judging: its DeCoVNet.
    """

    def __init__(
        self,
        card: ZhengCard,
        segmentation: Segmentation,
        decovnet: StreamedDecovnet,
        localiser: Localiser,
        device: Device,
        spare: Callable[[], "Pipeline"] | None = None,
    ) -> None:
        """spare: makes the pipeline that takes over a volume if the device lacks the memory for it."""
        self.card = card
        self.identity = card.identity()
        self.segmentation = segmentation
        self.judging = Judging(card, decovnet, localiser, device)
        self._decovnet = decovnet
        self._localiser = localiser
        self._device = device
        self._spare = spare
        self._policy = Policy.from_table(card.suitability)

    def run(self, volume: CTVolume, *, localise: bool = True, trace: bool = False, kept: Kept | None = None) -> Verdict:
        """Analyse a volume.

        localise: once the probability is known, also find what drove a positive result, and how far harmless changes
            move a borderline one. The probability stays the same.
        trace: also run the U-Net on slices that neither the verdict nor the reported mask needs, and keep
            `slices_resampled`, `raw_mask_ml`, `crop` and the stages' seconds. The result is the same.
        kept: what was computed before, see `ahead`. The result is the same.
        If a GPU lacks the memory for a volume, the CPU takes it over, and the verdict says so.
        Raises UnsuitableSeries if a rule of the card's [suitability] table or the mask gate refuses the volume;
        DeviceLost if the GPU failed.
        """
        return self.run_and_show(volume, localise=localise, trace=trace, kept=kept)[0]

    def run_and_show(
        self, volume: CTVolume, *, localise: bool = True, trace: bool = False, kept: Kept | None = None
    ) -> tuple[Verdict, NetworkInput]:
        """A volume's verdict, and DeCoVNet's input. Arguments and errors as for `run`."""
        turned = upright(volume)
        try:
            with naming_loss(self._device):
                verdict, given = self._analyse(turned, localise, trace, kept)
        except RuntimeError as error:
            if self._spare is None or not lacked_memory(error):
                raise
        else:
            return (verdict if turned is volume else _as_stored(verdict, turned)), given
        # Not in the handler: the error that it holds keeps what was computed on the GPU.
        torch.cuda.empty_cache()
        return self._spare().run_and_show(volume, localise=localise, trace=trace)

    def _analyse(
        self, volume: CTVolume, localise: bool, trace: bool, kept: Kept | None
    ) -> tuple[Verdict, NetworkInput]:
        """All stages for one upright volume. DeCoVNet gets the U-Net's raw mask; all else gets the confined one.

        If the masks were computed ahead, the networks' part runs beside the checks, which needs nothing of them: then
        little is lost where the volume is refused.
        """
        timings, profile = Timings(), self.card.profile
        results = KeptResults() if kept is None else kept.results
        with _in_turn() if kept is None else _beside() as begin:
            prepared = begin(lambda: self._prepared(volume, timings, kept, trace=trace))
            given = begin(lambda: self._given(*prepared(), timings, results, again=kept is not None))
            judged = begin(lambda: self._judged(given(), timings, results, localise=localise))
            with timings.stage("suitability"):
                accepted = accept(volume, self._policy)
            grey, raw = prepared()
            with timings.stage("mask"):
                on_source = on_source_slices(raw, len(volume.hu), profile)
                lungs = without_specks(confine(on_source, accepted.air), volume.voxel_ml)
                inside = verdict_source_slices(len(volume.hu), len(grey), profile)
                checks = (
                    *accepted.checks,
                    *check_mask(volume, lungs, self._policy, accepted.air),
                    check_ground(on_source, lungs, inside, volume.voxel_ml, self._policy),
                )
            crop, image, mask = given().crop, given().image, given().mask
            with timings.stage("crop"):
                placement = self._placement(volume, raw)
                check_crop(placement.box, on_source, lungs, inside, profile.decovnet.crop, self._policy)
            output, probability, activation = judged()
            localised, spread = None, None
            if localise:
                found_spread = begin(lambda: self._spread(probability, grey, raw, timings, results))
                with timings.stage("localisation"):
                    localised = self._localised(activation, placement, volume, lungs)
                spread = found_spread()
        left, right = sides(lungs, x_to_left=bool(volume.affine[0, 0] >= 0))
        verdict = Verdict(
            probability=probability,
            lung_mask=lungs,
            lung_volume_ml=(left + right) * volume.voxel_ml,
            left_lung_ml=left * volume.voxel_ml,
            right_lung_ml=right * volume.voxel_ml,
            localisation=localised.region if localised else None,
            heat=localised.heat if localised else None,
            threshold=self.card.threshold,
            device=f"{self._device.kind}: {self._device.name}",
            precision=self.segmentation.precision,
            versions={**_versions(), "engine": self.segmentation.unet.name},
            timings_s=timings.seconds,
            checks=checks,
            trace=_trace(raw, crop, volume, outside_share(on_source[inside], lungs[inside]), timings) if trace else {},
            verdict_slices=placement.source_slices,
            spread=spread,
            uncalibrated=None if self.card.calibration is None else output,
            calibration=None if self.card.calibration is None else self.card.calibration.sentence(),
        )
        return verdict, NetworkInput(image, mask, placement)

    def _prepared(self, volume: CTVolume, timings: Timings, kept: Kept | None, *, trace: bool) -> tuple[Grey, Grey]:
        """The grey slices, and the U-Net's masks of them: uint8 (T, Y, X) both."""
        with timings.stage("preprocess"), one_thread():
            grey = greys(volume, self.card.profile, self._device.torch_device)
        with timings.stage("unet"):
            needed = None if trace else needed_slices(len(volume.hu), len(grey), self.card.profile)
            return grey, self.segmentation.raw_masks(grey, needed, None if kept is None else kept.masks)

    def _given(self, grey: Grey, raw: Grey, timings: Timings, results: KeptResults, *, again: bool) -> Given:
        """DeCoVNet's input.  again: some of its results may be there already."""
        with timings.stage("crop"):
            if again:
                start, stop = verdict_range(len(grey), self.card.profile.slices)
                results.begin(grey[start:stop], raw[start:stop])
            return self.judging.given(grey, raw, results)

    def _judged(
        self, given: Given, timings: Timings, results: KeptResults, *, localise: bool
    ) -> tuple[float, float, Floats | None]:
        """DeCoVNet's output, the probability that it stands for, and the activation map if that is positive."""
        with timings.stage("decovnet"):
            output, features = self.judging.verdict(given, results)
        probability = self.card.calibrated(output)
        if not localise:
            return output, probability, None
        with timings.stage("localisation"):
            return output, probability, self.judging.activation(features, probability, results)

    def _spread(
        self, probability: float, grey: Grey, raw: Grey, timings: Timings, results: KeptResults
    ) -> Spread | None:
        with timings.stage("spread"):
            return self.judging.spread(probability, grey, raw, results)

    def ahead(self, max_bytes: int) -> MasksAhead | None:
        """Begin with a series that still arrives; None on a GPU, where nobody has measured whether that gains anything.

        There its masks would also have to be the same in batches of another size, which nobody has measured.
        """
        if self._device.kind != "cpu":
            return None
        return MasksAhead(self.segmentation, self.judging, self.card.profile, self._device, max_bytes)

    def _placement(self, volume: CTVolume, raw: Grey) -> Placement:
        profile = self.card.profile
        return Placement(
            shape=volume.hu.shape,
            resampled=len(raw),
            descending=profile.slices.order == "descending",
            box=verdict_box(raw, profile),
            size=profile.decovnet.size,
        )

    def _localised(
        self, activation: Floats | None, placement: Placement, volume: CTVolume, lungs: Mask
    ) -> Localisation:
        """What drove a positive result; nothing for a negative one."""
        if activation is None:
            return Localisation.nothing(volume.hu.shape)
        return self._localiser.localise(activation, placement, volume.hu, lungs, volume.spacing_mm)

    def probability(self, grey: Grey) -> float:
        """P(COVID-19) of grey slices preprocessed by this model's profile, without the checks on a volume.

        grey: uint8 (T, Y, X), as `preprocess.greys` gives them.
        Raises UnsuitableSeries if no lung is found.
        """
        profile = self.card.profile
        start, stop = verdict_range(len(grey), profile.slices)
        raw = self.segmentation.raw_masks(grey, np.arange(start, stop, dtype=np.intp))
        return self.judging.probability(*decovnet_input(grey, raw, profile))

    def verdict_on(self, image: Grey, mask: Grey) -> tuple[float, float]:
        """P(COVID-19) and its log-odds for DeCoVNet's input: uint8 (T, rows, columns), see `NetworkInput`."""
        output, features = self._decovnet.verdict(image, mask)
        with one_thread():
            score = self._localiser.log_odds(features)
        if self.card.calibration is None:
            return output, score
        return self.card.calibrated(output), self.card.calibration.apply_log_odds(score)


class _Begin(Protocol):
    """Begins with a piece of work. Returns what gives its result, or raises its error, whenever it is asked for."""

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]: ...


@contextmanager
def _in_turn() -> Iterator[_Begin]:
    """Each piece of work is done when its result is first asked for."""

    def begin(work: Callable[[], Result]) -> Callable[[], Result]:
        return cache(work)

    yield begin


@contextmanager
def _beside() -> Iterator[_Begin]:
    """All pieces are done in another thread, one after the other."""
    pool = ThreadPoolExecutor(1)

    def begin(work: Callable[[], Result]) -> Callable[[], Result]:
        return pool.submit(as_interruptible(work)).result

    try:
        yield begin
    finally:
        pool.shutdown(cancel_futures=True)


def _as_stored(verdict: Verdict, turned: CTVolume) -> Verdict:
    """The verdict of an upright copy, with its maps brought to the grid of the stored images."""
    return replace(
        verdict,
        lung_mask=as_stored(verdict.lung_mask, turned),
        localisation=None if verdict.localisation is None else as_stored(verdict.localisation, turned),
        heat=None if verdict.heat is None else as_stored(verdict.heat, turned),
    )


def _trace(raw: Grey, crop: tuple[int, ...], volume: CTVolume, outside: float, timings: Timings) -> dict[str, object]:
    """outside: share of the raw mask in the verdict's slices that is not in the reported one."""
    voxel_ml = volume.voxel_ml * len(volume.hu) / len(raw)
    return {
        "slices_resampled": len(raw),
        "raw_mask_ml": int(np.count_nonzero(raw)) * voxel_ml,
        "raw_mask_outside_lungs": outside,
        "crop": list(crop),
        "stages_s": dict(timings.seconds),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
