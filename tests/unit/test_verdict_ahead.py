"""DeCoVNet's part of a verdict that was found while slices arrived: used for the slices that it is of, and the same."""

import dataclasses
import gc
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from torch import Tensor

from inference.arrays import Grey
from inference.covid.ahead import MasksAhead
from inference.covid.card import read_zheng_card
from inference.covid.decovnet import DeCoVNet
from inference.covid.judging import Judging
from inference.covid.kept import KeptResults
from inference.covid.localisation import Floats, Localiser
from inference.covid.segmentation import Segmentation
from inference.covid.streamed import StreamedDecovnet
from inference.finding import Spread
from inference.interrupt import Interrupted, interruptible
from inference.lungs.engine import UnetEngine, open_unet
from inference.models.profile import SpreadRule
from inference.preprocess import greys, verdict_range
from inference.volume.arriving import arrived
from inference.volume.ct_volume import upright
from inference.volume.load import DecodedFile, decode, load
from tests.unit.test_masks_ahead import CPU, FOLDER, SLICES, SMALL, Counting, run, series
from tests.unit.test_pipeline_engines import random_unet

LINEAR = dataclasses.replace(SMALL.slices, interpolation_order=1)  # with splines so few slices all need one another
CARD = dataclasses.replace(
    read_zheng_card(FOLDER),
    profile=dataclasses.replace(SMALL, slices=LINEAR, decovnet=dataclasses.replace(SMALL.decovnet, size=(32, 48))),
    threshold=1e-6,  # every output is positive
    spread=SpreadRule((0.0, 1.0), ("one row higher", "without its lowest slice")),
)


class CountingDecovnet(StreamedDecovnet):
    """It counts what it computes."""

    computed = 0

    def verdict(self, image: Grey, mask: Grey) -> tuple[float, Tensor]:
        self.computed += 1
        return super().verdict(image, mask)


class Networks:
    """Both networks with weights of chance, and what was computed ahead of one series."""

    def __init__(self, engine: UnetEngine) -> None:
        torch.manual_seed(3)
        network = DeCoVNet("batch").eval()
        self.unet, self.decovnet = Counting(engine), CountingDecovnet(network, CPU)
        self.segmentation = Segmentation(self.unet, self.unet, CARD.profile, CPU)  # type: ignore[arg-type]
        self.judging = Judging(CARD, self.decovnet, Localiser(network), CPU)
        self.ahead = MasksAhead(self.segmentation, self.judging, CARD.profile, CPU, 1 << 20)

    def judged(
        self, paths: list[Path], results: KeptResults, *, again: bool
    ) -> tuple[float, Floats | None, Spread | None]:
        """What DeCoVNet says of a whole series, as the pipeline asks for it."""
        volume = upright(load(paths))
        grey = greys(volume, CARD.profile)
        raw = self.segmentation.raw_masks(grey)
        start, stop = verdict_range(len(grey), CARD.profile.slices)
        if again:
            results.begin(grey[start:stop], raw[start:stop])
        output, features = self.judging.verdict(self.judging.given(grey, raw, results), results)
        activation = self.judging.activation(features, output, results)
        return output, activation, self.judging.spread(output, grey, raw, results)


@pytest.fixture(scope="module")
def engine() -> UnetEngine:
    return open_unet(random_unet("batch"), CPU, "float32", "torch")


def decoded(paths: list[Path]) -> dict[str, DecodedFile]:
    return {path.name: decode(path, 1 << 20) for path in paths}


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[0] == other[0] and one[2] == other[2] and np.array_equal(one[1], other[1])


@pytest.mark.parametrize("spacing", [1.0, 0.7])
@pytest.mark.parametrize("downwards", [False, True], ids=["upwards", "downwards"])
def test_a_verdict_is_found_before_the_last_slices_have_come_and_is_the_same(
    tmp_path: Path, engine: UnetEngine, spacing: float, downwards: bool
) -> None:
    networks, paths = Networks(engine), series(tmp_path, spacing, ImagesInAcquisition=SLICES)
    run(networks.ahead, decoded(sorted(paths, reverse=downwards)[: SLICES - 9]))
    assert networks.decovnet.computed == 3  # the verdict, and two changes of a borderline one
    found = networks.judged(paths, networks.ahead.kept.results, again=True)
    assert networks.decovnet.computed == 3
    plain = networks.judged(paths, KeptResults(), again=False)
    assert networks.decovnet.computed == 6
    assert same(found, plain) and found[1] is not None and found[2] is not None


def test_it_is_found_too_if_only_a_pacs_knows_how_many_slices_come(tmp_path: Path, engine: UnetEngine) -> None:
    networks, paths = Networks(engine), series(tmp_path, 1.0)
    run(networks.ahead, decoded(paths[: SLICES - 9]), expected=SLICES)
    assert networks.decovnet.computed == 3
    found = networks.judged(paths, networks.ahead.kept.results, again=True)
    assert networks.decovnet.computed == 3 and same(found, networks.judged(paths, KeptResults(), again=False))


def test_a_verdict_whose_slices_are_there_goes_before_masks_of_others(tmp_path: Path, engine: UnetEngine) -> None:
    networks, paths = Networks(engine), series(tmp_path, 1.0, ImagesInAcquisition=SLICES)
    run(networks.ahead, decoded(paths[: SLICES // 2]))
    all_masks = SLICES - 9
    there = arrived(decoded(paths[:all_masks]))
    assert there is not None
    while not networks.decovnet.computed:
        assert networks.ahead.go_on(there, settled=False)
    assert SLICES // 2 < networks.unet.computed < all_masks, "those of the verdict, and not of all that are there"
    run(networks.ahead, decoded(paths[:all_masks]))
    assert networks.unet.computed == all_masks and networks.decovnet.computed == 3


def test_a_verdict_that_a_job_has_interrupted_is_taken_up_again(
    tmp_path: Path, engine: UnetEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, paths = Networks(engine), series(tmp_path, 1.0, ImagesInAcquisition=SLICES)
    files, verdict = decoded(paths[: SLICES - 9]), CountingDecovnet.verdict
    monkeypatch.setattr(CountingDecovnet, "verdict", lambda *_: (_ for _ in ()).throw(Interrupted))
    with pytest.raises(Interrupted):
        run(networks.ahead, files)
    monkeypatch.setattr(CountingDecovnet, "verdict", verdict)
    run(networks.ahead, files)
    assert networks.decovnet.computed == 3


@pytest.mark.parametrize("spacing", [1.0, 0.7])
def test_masks_that_a_job_has_interrupted_are_computed_later(
    tmp_path: Path, engine: UnetEngine, monkeypatch: pytest.MonkeyPatch, spacing: float
) -> None:
    networks, paths = Networks(engine), series(tmp_path, spacing, ImagesInAcquisition=SLICES)
    larger = dataclasses.replace(CARD.profile, unet=dataclasses.replace(CARD.profile.unet, size=(32, 32)))
    monkeypatch.setattr(networks.segmentation, "_profile", larger)  # so that slices are resized
    there = arrived(decoded(paths[: SLICES - 9]))
    assert there is not None and networks.ahead.go_on(there, settled=False)
    with pytest.raises(Interrupted), interruptible(lambda: True):
        networks.ahead.go_on(there, settled=False)
    while networks.ahead.go_on(there, settled=False):
        pass
    assert networks.decovnet.computed == 3
    uninterrupted = Networks(engine)
    monkeypatch.setattr(uninterrupted.segmentation, "_profile", larger)
    run(uninterrupted.ahead, decoded(paths[: SLICES - 9]))
    assert networks.unet.computed == uninterrupted.unet.computed


def test_decoded_slices_are_dropped_while_a_verdict_is_not_yet_done(tmp_path: Path, engine: UnetEngine) -> None:
    networks, paths = Networks(engine), series(tmp_path, 1.0, ImagesInAcquisition=SLICES)
    files = decoded(paths[: SLICES - 9])
    plane = weakref.ref(files[paths[SLICES // 2].name].planes[0])
    there = arrived(files)
    assert there is not None
    while not networks.decovnet.computed:
        assert networks.ahead.go_on(there, settled=False)
    del files, there
    gc.collect()
    assert plane() is None


@pytest.mark.parametrize(("said", "there"), [(None, SLICES - 1), (SLICES, SLICES // 2), (SLICES, SLICES)])
def test_nothing_is_guessed_of_a_verdict_if_its_slices_are_not_known_or_not_there(
    tmp_path: Path, engine: UnetEngine, said: int | None, there: int
) -> None:
    """All of them being there, the whole series is analysed instead."""
    networks, named = Networks(engine), {} if said is None else {"ImagesInAcquisition": said}
    run(networks.ahead, decoded(series(tmp_path, 1.0, **named)[:there]))
    assert networks.decovnet.computed == 0


def test_a_verdict_of_a_series_that_was_taken_for_another_is_not_used(tmp_path: Path, engine: UnetEngine) -> None:
    networks = Networks(engine)
    paths = series(tmp_path, 1.0, ImagesInAcquisition=SLICES + 9)  # the last nine never come
    run(networks.ahead, decoded(paths))
    before = networks.decovnet.computed
    found = networks.judged(paths, networks.ahead.kept.results, again=True)
    assert before == 3 and networks.decovnet.computed == 6
    assert same(found, networks.judged(paths, KeptResults(), again=False))


def test_if_a_slice_of_the_verdict_is_replaced_it_is_judged_anew(tmp_path: Path, engine: UnetEngine) -> None:
    networks, paths = Networks(engine), series(tmp_path, 1.0, ImagesInAcquisition=SLICES)
    run(networks.ahead, decoded(paths[:-5]))
    other = series(tmp_path / "other", 1.0, RescaleIntercept=-1000)
    networks.judged(other, networks.ahead.kept.results, again=True)
    assert networks.decovnet.computed == 6
    assert arrived(decoded(paths)) is not None


def test_masks_that_found_no_room_are_not_computed_again_for_a_verdict(tmp_path: Path, engine: UnetEngine) -> None:
    """A job would have to wait for them."""
    networks = Networks(engine)
    networks.ahead.kept.masks._max_bytes = 32 * 5
    run(networks.ahead, decoded(series(tmp_path, 1.0, ImagesInAcquisition=SLICES)[:-9]))
    assert networks.decovnet.computed == 0 and networks.unet.computed == SLICES - 9


@pytest.mark.parametrize(
    ("spacing", "changes", "expected"),
    [
        (0.7, {"ImagesInAcquisition": 20_000}, None),
        (0.7, {}, 20_000),
        (1e7, {}, None),
    ],
    ids=["scanner", "PACS", "positions"],
)
def test_whatever_is_said_of_the_size_takes_no_memory(
    tmp_path: Path, engine: UnetEngine, spacing: float, changes: dict[str, int], expected: int | None
) -> None:
    networks, paths = Networks(engine), series(tmp_path, spacing, **changes)[:4]
    for path in paths:
        one = dcmread(path)
        one.SliceThickness = 1.0  # a thickness may not be anything, but a position may
        one.save_as(path)
    tracemalloc.start()
    try:
        run(networks.ahead, decoded(paths), expected=expected)
        run(networks.ahead, decoded(paths), settled=True, expected=expected)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100 << 20


def test_a_verdict_without_lung_is_left_to_the_job(tmp_path: Path, engine: UnetEngine) -> None:
    class Blind(Counting):
        def masks(self, slices: Grey) -> Grey:
            return np.zeros_like(slices)

    networks = Networks(Blind(engine))  # type: ignore[arg-type]
    run(networks.ahead, decoded(series(tmp_path, 1.0, ImagesInAcquisition=SLICES)[:-3]))
    assert networks.decovnet.computed == 0
