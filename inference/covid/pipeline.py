"""The chest CT pipeline: a volume in, a finding out, or a named reason why not."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from config.reasons import ReasonCode
from inference.arrays import Box, Grey, Mask
from inference.covid.decovnet import DeCoVNet
from inference.covid.localisation import Localisation, Localiser, NetworkInput, Placement
from inference.covid.streamed import StreamedDecovnet
from inference.covid.weights import load_networks
from inference.device import Device, choose_device, one_thread
from inference.errors import UnsuitableSeries
from inference.finding import Finding
from inference.lungs.engine import BackEnd, UnetEngine, cpu_runs, open_unet
from inference.lungs.mask import clean, sides
from inference.lungs.unet import UNet
from inference.models.cards import Card, Precision, Profile, read_card
from inference.preprocess import (
    CPU,
    greys,
    mask_box,
    nearest_pixels,
    nearest_resampled,
    resize_slices,
    verdict_range,
)
from inference.suitability.check import Policy, check, check_mask
from inference.volume.ct_volume import CTVolume, as_stored, upright

Speed = Literal["exact", "fast"]

# Slices handed to an engine together: bounds the copies in memory, and keeps a GPU busy.
_SLICES_AT_ONCE = 128

_PACKAGES = ("torch", "numpy", "scipy", "openvino", "connected-components-3d")


class Timings:
    """Wall seconds by stage, in the order in which the stages began."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the block towards a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Pipeline:
    """A model on a device, ready for volumes.

    identity: which model it is.
    """

    def __init__(
        self,
        card: Card,
        unet: UnetEngine,
        reporting: UnetEngine,
        decovnet: StreamedDecovnet,
        localiser: Localiser,
        device: Device,
        spare: Callable[[], "Pipeline"] | None = None,
    ) -> None:
        """unet: for the verdict's slices.  reporting: for those that only the reported mask needs; may be the same.

        spare: makes the pipeline that takes over a volume for which the device has not the memory.
        """
        self.card = card
        self.identity = card.identity()
        self._unet = unet
        self._reporting = reporting
        self._decovnet = decovnet
        self._localiser = localiser
        self._device = device
        self._spare = spare
        self._policy = Policy.from_table(card.suitability)

    def run(
        self, volume: CTVolume, *, localise: bool = True, trace: bool = False, seen: list[NetworkInput] | None = None
    ) -> Finding:
        """Analyse a volume.

        localise: also find what drove a positive result, once the probability is there; it does not change.
        trace: also run the U-Net on slices that neither the verdict nor the reported mask needs, and keep
            `slices_resampled`, `raw_mask_ml`, `crop` and the stages' seconds. The result is the same.
        seen: what DeCoVNet gets is appended to it.
        On a GPU without the memory for it, the CPU takes the volume over; the finding says so.
        Raises UnsuitableSeries when a rule of the card's [suitability] table or the mask gate refuses it.
        """
        inputs: list[NetworkInput] = []
        try:
            finding = self._run(volume, localise, trace, inputs)
        except torch.cuda.OutOfMemoryError:
            if self._spare is None:
                raise
            torch.cuda.empty_cache()
            return self._spare().run(volume, localise=localise, trace=trace, seen=seen)
        if seen is not None:
            seen += inputs
        return finding

    def _run(self, volume: CTVolume, localise: bool, trace: bool, seen: list[NetworkInput]) -> Finding:
        turned = upright(volume)
        if turned is not volume:
            return _as_stored(self._run(turned, localise, trace, seen), turned, volume.digest())
        timings, profile = Timings(), self.card.profile
        with timings.stage("suitability"):
            checks = check(volume, self._policy)
        with timings.stage("preprocess"), one_thread():
            grey = greys(volume, profile, self._device.torch_device)
        with timings.stage("unet"):
            raw = self.raw_masks(grey, None if trace else needed_slices(len(volume.hu), len(grey), profile))
        with timings.stage("mask"):
            lungs = reported_mask(raw, len(volume.hu), profile)
            left, right = sides(lungs, x_to_left=bool(volume.affine[0, 0] >= 0))
            checks += check_mask(volume, lungs, self._policy)
        with timings.stage("crop"), one_thread():
            image, mask = decovnet_input(grey, raw, profile)
            crop, image, mask = image.shape, *resized(image, mask, profile, self._device.torch_device)
        with timings.stage("decovnet"):
            probability, features = self._decovnet.verdict(image, mask)
        placement = self._placement(volume, raw)
        seen.append(NetworkInput(image, mask, placement))
        localised = None
        if localise:
            with timings.stage("localisation"), one_thread():
                localised = self._localised(probability, features, placement, volume, lungs)
        spacing_z = volume.spacing_mm[0] * len(volume.hu) / len(grey)
        resampled_ml = spacing_z * volume.spacing_mm[1] * volume.spacing_mm[2] / 1000.0
        return Finding(
            probability=probability,
            lung_mask=lungs,
            lung_volume_ml=(left + right) * volume.voxel_ml,
            left_lung_ml=left * volume.voxel_ml,
            right_lung_ml=right * volume.voxel_ml,
            localisation=localised.region if localised else None,
            heat=localised.heat if localised else None,
            pixel_digest=volume.digest(),
            model=self.identity,
            device=f"{self._device.kind}: {self._device.name}",
            precision=self._precision(),
            versions={**_versions(), "engine": self._unet.name},
            timings_s=timings.seconds,
            checks=checks,
            trace=_trace(raw, crop, resampled_ml, timings.seconds) if trace else {},
            verdict_slices=placement.source_slices,
        )

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
        self, probability: float, features: Tensor, placement: Placement, volume: CTVolume, lungs: Mask
    ) -> Localisation:
        """What drove a positive result; nothing where the result is negative."""
        if probability < self.card.threshold:
            return Localisation.nothing(volume.hu.shape)
        return self._localiser.localise(features, placement, volume.hu, lungs, volume.spacing_mm)

    def probability(self, grey: Grey) -> float:
        """P(COVID-19) of grey slices that went through this model's profile, without the checks of a volume.

        grey: uint8 (T, Y, X), as `preprocess.greys` gives them.
        Raises UnsuitableSeries where no lung is found.
        """
        profile = self.card.profile
        start, stop = verdict_range(len(grey), profile.slices)
        raw = self.raw_masks(grey, np.arange(start, stop, dtype=np.intp))
        return self._decovnet.probability(
            *resized(*decovnet_input(grey, raw, profile), profile, self._device.torch_device)
        )

    def verdict_on(self, image: Grey, mask: Grey) -> tuple[float, float]:
        """P(COVID-19) and its log-odds of what DeCoVNet is given: uint8 (T, rows, columns), see `NetworkInput`."""
        probability, features = self._decovnet.verdict(image, mask)
        with one_thread():
            return probability, self._localiser.log_odds(features)

    def _precision(self) -> str:
        verdict, reporting = self._unet.precision, self._reporting.precision
        return verdict if verdict == reporting else f"{verdict}, {reporting} outside the verdict's slices"

    def raw_masks(self, grey: Grey, chosen: npt.NDArray[np.intp] | None = None) -> Grey:
        """The U-Net's masks on the grid of `grey`: uint8 (T, Y, X), 0 in slices that are not chosen.

        chosen: indices of slices, all of them where None.
        """
        every = np.arange(len(grey), dtype=np.intp) if chosen is None else chosen
        if self._reporting is self._unet:
            return self._masked(grey, every, self._unet)
        start, stop = verdict_range(len(grey), self.card.profile.slices)
        inside = (every >= start) & (every < stop)
        return self._masked(grey, every[inside], self._unet) | self._masked(grey, every[~inside], self._reporting)

    def _masked(self, grey: Grey, chosen: npt.NDArray[np.intp], engine: UnetEngine) -> Grey:
        """An engine's masks of the chosen slices, 0 elsewhere: uint8 (T, Y, X)."""
        unet, size = self.card.profile.unet, (grey.shape[1], grey.shape[2])
        result = np.zeros_like(grey)
        for start in range(0, len(chosen), _SLICES_AT_ONCE):
            part = chosen[start : start + _SLICES_AT_ONCE]
            with one_thread():
                slices = resize_slices(grey[part], unet.size, unet.interpolation_order, self._device.torch_device)
            result[part] = nearest_pixels(engine.masks(slices), size)
        return result


def load_pipeline(
    model_folder: Path,
    device: str = "auto",
    precision: Speed = "exact",
    threads: int = 0,
    back_end: BackEnd = "auto",
) -> Pipeline:
    """Load a model onto a device.

    model_folder: card and weights, see `registry.find_model`.  device: see `device.choose_device`.
    precision: "exact" is float32; "fast" lets the U-Net use the lower precisions that the card allows, for the
        verdict's slices and for the others, where the device computes in them.
    threads: CPU threads, 0 for as many as there are cores.
    Raises ModelError when the model is missing, altered or does not fit, or the device is not there.
    """
    card = read_card(model_folder)
    chosen = choose_device(device, threads)
    unet, decovnet = load_networks(model_folder, card)
    spare = None if chosen.kind == "cpu" else partial(load_pipeline, model_folder, "cpu", precision, threads)
    return pipeline_of(card, unet, decovnet, chosen, precision, back_end, spare)


def pipeline_of(
    card: Card,
    unet: UNet,
    decovnet: DeCoVNet,
    device: Device,
    precision: Speed = "exact",
    back_end: BackEnd = "auto",
    spare: Callable[[], Pipeline] | None = None,
) -> Pipeline:
    """The pipeline of two networks, in evaluation mode on the CPU, and the card that describes them."""
    verdict_format = number_format(card.precisions, device, precision)
    reporting_format = number_format(card.reporting_precisions, device, precision)
    engine = open_unet(unet, device, verdict_format, back_end)
    same = reporting_format in ("float32", verdict_format)
    reporting = engine if same else open_unet(unet, device, reporting_format, back_end)
    return Pipeline(card, engine, reporting, StreamedDecovnet(decovnet, device), Localiser(decovnet), device, spare)


def number_format(allowed: tuple[Precision, ...], device: Device, precision: Speed) -> Precision:
    """float32, or for "fast" the first other format that the card allows and the device computes in."""
    if precision == "fast":
        for candidate in allowed:
            if candidate != "float32" and (device.kind == "cuda" or cpu_runs(candidate)):
                return candidate
    return "float32"


def _as_stored(finding: Finding, turned: CTVolume, pixel_digest: str) -> Finding:
    """The finding of an upright copy, its maps on the grid of the stored images."""
    return replace(
        finding,
        pixel_digest=pixel_digest,
        lung_mask=as_stored(finding.lung_mask, turned),
        localisation=None if finding.localisation is None else as_stored(finding.localisation, turned),
        heat=None if finding.heat is None else as_stored(finding.heat, turned),
    )


def needed_slices(slices: int, count: int, profile: Profile) -> npt.NDArray[np.intp]:
    """Indices of the resampled slices that a result needs: the verdict's, and those nearest to a source slice."""
    start, stop = verdict_range(count, profile.slices)
    return np.union1d(nearest_resampled(slices, count), np.arange(start, stop, dtype=np.intp))


def reported_mask(raw: Grey, slices: int, profile: Profile) -> Mask:
    """The cleaned mask on the source grid: bool (Z, Y, X), each slice from the resampled one nearest to it."""
    on_source = raw[nearest_resampled(slices, len(raw))]
    return clean(on_source[::-1] if profile.slices.order == "descending" else on_source)


def decovnet_input(grey: Grey, raw: Grey, profile: Profile) -> tuple[Grey, Grey]:
    """Image and mask of the slices that the verdict is made from, cropped: uint8 (T, Y, X) both.

    Raises UnsuitableSeries where there are too few slices, or no lung in them.
    """
    start, stop = verdict_range(len(grey), profile.slices)
    mask = _verdict_mask(raw[start:stop], profile)
    box = _crop(mask, profile)
    image, mask = grey[start:stop][box], mask[box]
    if len(image) < 2:
        raise UnsuitableSeries(ReasonCode.TOO_FEW_SLICES, "Fewer than 2 slices are left for the verdict.")
    return image, mask


def verdict_box(raw: Grey, profile: Profile) -> Box:
    """Where `decovnet_input` lies among the resampled slices."""
    start, stop = verdict_range(len(raw), profile.slices)
    z, y, x = _crop(_verdict_mask(raw[start:stop], profile), profile)
    return slice(start + z.start, start + z.stop), y, x


def _verdict_mask(raw: Grey, profile: Profile) -> Grey:
    return clean(raw).view(np.uint8) if profile.decovnet.mask == "cleaned" else raw


def _crop(mask: Grey, profile: Profile) -> Box:
    if profile.decovnet.crop == "mask-box" and len(mask):
        return mask_box(mask)
    return slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])


def resized(image: Grey, mask: Grey, profile: Profile, device: torch.device = CPU) -> tuple[Grey, Grey]:
    """Image and mask as DeCoVNet gets them: uint8 (T, rows, columns), the mask 0 or 1.  device: where to compute."""
    size, order = profile.decovnet.size, profile.decovnet.interpolation_order
    return resize_slices(image, size, order, device), np.minimum(resize_slices(mask, size, order, device), 1)


def _trace(raw: Grey, crop: tuple[int, ...], voxel_ml: float, seconds: dict[str, float]) -> dict[str, object]:
    return {
        "slices_resampled": len(raw),
        "raw_mask_ml": int(np.count_nonzero(raw)) * voxel_ml,
        "crop": list(crop),
        "stages_s": dict(seconds),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
