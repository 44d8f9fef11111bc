"""DeCoVNet's part of a verdict: from the slices that it is made from and their masks to the probability, and what
belongs to that. None of it needs any other slice."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from inference.arrays import Grey
from inference.covid.card import ZhengCard
from inference.covid.kept import KeptResults
from inference.covid.localisation import Floats, Localiser
from inference.covid.spread import changed_inputs, spread_of
from inference.covid.streamed import StreamedDecovnet
from inference.covid.verdict_input import decovnet_input, resized
from inference.device import Device, one_thread
from inference.finding import Spread
from inference.models.profile import SpreadRule


@dataclass(frozen=True)
class Given:
    """DeCoVNet's input: uint8 (T, rows, columns) both, the mask 0 or 1.  crop: its shape before it was resized."""

    crop: tuple[int, ...]
    image: Grey
    mask: Grey


class Judging:
    """A DeCoVNet on a device.

    Each method takes the results that were found so far of its input, see `KeptResults`, and adds its own.
    grey, raw: all resampled slices and the U-Net's masks of them, uint8 (T, Y, X); only the verdict's slices count.
    """

    def __init__(self, card: ZhengCard, decovnet: StreamedDecovnet, localiser: Localiser, device: Device) -> None:
        self._card = card
        self._decovnet = decovnet
        self._localiser = localiser
        self._device = device

    def given(self, grey: Grey, raw: Grey, results: KeptResults) -> Given:
        """DeCoVNet's input. Raises UnsuitableSeries if there are too few slices, or no lung in them."""

        def crop() -> Given:
            image, mask = decovnet_input(grey, raw, self._card.profile)
            return Given(image.shape, *self._resized(image, mask))

        with one_thread():
            return results.result("input", crop)

    def verdict(self, given: Given, results: KeptResults) -> tuple[float, Tensor]:
        """DeCoVNet's output, not calibrated, and its last feature volume: see `StreamedDecovnet.verdict`."""
        return results.result("verdict", lambda: self._decovnet.verdict(given.image, given.mask))

    def activation(self, features: Tensor, probability: float, results: KeptResults) -> Floats | None:
        """What of the feature volume points to a positive result; None for a negative one."""
        if probability < self._card.threshold:
            return None
        with one_thread():
            return results.result("activation", lambda: self._localiser.activation(features))

    def spread(self, probability: float, grey: Grey, raw: Grey, results: KeptResults) -> Spread | None:
        """How far harmless changes move a probability that may be borderline; None for any other."""
        rule = self._rule_for(probability)
        return None if rule is None else spread_of(probability, self._after_changes(rule, grey, raw, results), rule)

    def _rule_for(self, probability: float) -> SpreadRule | None:
        rule = self._card.spread
        # The card's band is one of the networks' own output: with a calibration, every output is tried.
        tried = rule is not None and (self._card.calibration is not None or rule.applies(probability))
        return rule if tried else None

    def _after_changes(self, rule: SpreadRule, grey: Grey, raw: Grey, results: KeptResults) -> Iterator[float]:
        for change, image, mask in changed_inputs(grey, raw, self._card.profile, rule):
            yield results.result(f"after {change}", partial(self.probability, image, mask))

    def probability(self, image: Grey, mask: Grey) -> float:
        """P(COVID-19) of a cropped image and its mask: uint8 (T, Y, X)."""
        with one_thread():
            image, mask = self._resized(image, mask)
        return self._card.calibrated(self._decovnet.probability(image, mask))

    def _resized(self, image: Grey, mask: Grey) -> tuple[Grey, Grey]:
        return resized(image, mask, self._card.profile, self._device.torch_device, self._device.cpu_threads)

    def ahead(self, grey: Grey, raw: Grey, results: KeptResults) -> Iterator[None]:
        """Find everything before it is asked for, one result after the other. Raises UnsuitableSeries as `given`."""
        given = self.given(grey, raw, results)
        yield
        output, features = self.verdict(given, results)
        probability = self._card.calibrated(output)
        yield
        self.activation(features, probability, results)
        rule = self._rule_for(probability)
        if rule is not None:
            for _ in self._after_changes(rule, grey, raw, results):
                yield
