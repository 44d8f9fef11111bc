"""Localisation: the map lies where the network looked, follows the lesion, and leaves the verdict alone."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import center_of_mass, gaussian_filter, label, maximum_filter, minimum_filter, uniform_filter

from benchmarks.localisation import (
    ALWAYS,
    KnownPipeline,
    analysed,
    follows,
    iou,
    open_pipeline,
    two_places,
    with_lesion,
)
from inference.covid.card import read_zheng_card
from inference.covid.decovnet import DeCoVNet
from inference.covid.localisation import (
    FIRST,
    STRIDE,
    Localiser,
    NetworkInput,
    Placement,
    activation_map,
    on_source_grid,
    region_of,
)
from inference.covid.occlusion import explain, on_input_grid
from inference.covid.verdict_input import decovnet_input, resized, verdict_box
from inference.models.cards import shipped_folder
from inference.models.profile import Profile
from inference.phantom.chest import make_phantom
from inference.preprocess import greys
from inference.volume.ct_volume import CTVolume

AUTHORS = read_zheng_card(shipped_folder() / "zheng2020-authors").profile


def volume_of(hu: npt.NDArray[np.int16], spacing_mm: tuple[float, float, float]) -> CTVolume:
    return CTVolume(hu, spacing_mm, np.diag([*spacing_mm[::-1], 1.0]), (), "1.2.3", "1.2.4")


def seen(volume: CTVolume, lungs: npt.NDArray[np.bool_], profile: Profile) -> tuple[np.ndarray, np.ndarray, Placement]:
    """What DeCoVNet gets of a volume whose lungs are known, and where that lies."""
    grey = greys(volume, profile)
    descending = profile.slices.order == "descending"
    on_grid = lungs[::-1] if descending else lungs
    nearest = np.rint(np.linspace(0, len(lungs) - 1, len(grey))).astype(int)
    raw = on_grid[nearest].astype(np.uint8)
    image, mask = resized(*decovnet_input(grey, raw, profile), profile)
    place = Placement(volume.hu.shape, len(grey), descending, verdict_box(raw, profile), profile.decovnet.size)
    return image, mask, place


def test_a_place_of_the_feature_volume_looks_at_the_input_around_where_the_map_puts_it() -> None:
    torch.manual_seed(0)
    network = DeCoVNet("running").eval()
    x = torch.rand(1, 2, 16, 64, 96, requires_grad=True)
    place = (4, 3, 7)
    network.features(x)[0, :, *place].sum().backward()
    assert x.grad is not None
    middle = center_of_mass(x.grad[0].abs().sum(0).numpy())
    assert middle == pytest.approx(
        [first + step * at for first, step, at in zip(FIRST, STRIDE, place, strict=True)], abs=1
    )


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("crop", ["mask-box", "none"])
def test_heat_comes_back_to_where_it_was_seen(order: str, crop: str) -> None:
    """A bright ball goes the way of every volume into the network; its place there must lead back to it."""
    profile = replace(
        AUTHORS,
        slices=replace(AUTHORS.slices, order=order, lung_range=(0.1, 1.0)),  # type: ignore[arg-type]
        decovnet=replace(AUTHORS.decovnet, crop=crop),  # type: ignore[arg-type]
    )
    shape, spacing, ball = (30, 64, 80), (2.0, 4.0, 4.0), np.array([16, 28, 52])
    z, y, x = np.indices(shape)
    lungs = (np.abs(z - 16) < 11) & (np.abs(y - 30) < 20) & (np.abs(x - 42) < 30)
    distance = np.sqrt(((np.stack([z, y, x], -1) - ball) * spacing) ** 2 @ np.ones(3))
    hu = np.where(distance < 12, 600, -1200).astype(np.int16)
    image, _, place = seen(volume_of(hu, spacing), lungs, profile)
    in_input = center_of_mass(image.astype(float))
    activation = np.zeros((len(image) // 2, *(size // 8 for size in profile.decovnet.size)), np.float32)
    at = [(where - first) / step for where, first, step in zip(in_input, FIRST, STRIDE, strict=True)]
    # The share of every place that is next to the ball's, so that interpolation leads back to it exactly.
    for index in np.ndindex(2, 2, 2):
        near = np.floor(at).astype(int) + index
        activation[tuple(near)] = np.prod(1 - np.abs(near - at))
    assert np.array(center_of_mass(on_source_grid(activation, place).astype(float))) == pytest.approx(ball, abs=0.5)


def test_the_map_is_the_gradients_share_and_needs_no_other_computing() -> None:
    """For one linear classifier the map can be written down: weight of the channel times its activation."""

    class Linear(DeCoVNet):
        def classify(self, features: torch.Tensor) -> torch.Tensor:
            return torch.stack([features[:, 1].sum((1, 2, 3)), features[:, 0].sum((1, 2, 3)) * 3], dim=1)

    features = torch.rand(4, 128, 3, 5)
    wanted = (3 * features[:, 0] - features[:, 1]).clamp_min(0)
    found = activation_map(Linear(), features)
    assert np.allclose(found, (wanted / wanted.max()).numpy(), atol=1e-5)
    assert not activation_map(Linear(), torch.zeros(4, 128, 3, 5)).any()


def test_the_same_verdict_gives_the_same_map_whatever_the_threads() -> None:
    torch.manual_seed(1)
    network, features = DeCoVNet("batch").eval(), torch.rand(20, 128, 14, 21)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        localiser = Localiser(network)
        hu = np.full((20, 112, 168), -900, np.int16)
        place = Placement(hu.shape, 40, False, (slice(0, 40), slice(0, 112), slice(0, 168)), (112, 168))
        found.append(localiser.localise(localiser.activation(features), place, hu, hu < 0, (2.0, 2.0, 2.0)).heat)
    torch.set_num_threads(1)
    assert found[0].any() and np.array_equal(found[0], found[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_region_is_hot_dense_lung_in_parts_that_are_not_specks() -> None:
    hu = np.full((10, 40, 40), -850, np.int16)
    lungs = np.zeros(hu.shape, bool)
    lungs[:, 5:35, 5:35] = True
    heat = np.zeros(hu.shape, np.uint8)
    heat[2:8, :20] = 200
    for corner in ((2, 8, 8), (2, 8, 30), (2, 28, 8)):  # hot; hot, partly outside the lungs; cold
        z, y, x = corner
        hu[z : z + 6, y : y + 8, x : x + 8] = -500
    hu[4, 16, 20] = -500  # a speck
    hu[2:8, 18, 6:34] = -500  # a vessel, 2 mm wide
    found = region_of(heat, hu, lungs, (2.0, 2.0, 2.0))
    assert found[4, 11, 11] and found[4, 11, 33] and not found[4, 31, 11] and not found[4, 16, 20]
    assert not found[:, 18:].any()
    assert not found[:, :, 35:].any() and not (found & ~lungs).any()
    assert not region_of(np.zeros_like(heat), hu, lungs, (2.0, 2.0, 2.0)).any()


@pytest.mark.parametrize("spacing_mm", [(5.0, 1.0, 1.0), (5.0, 0.7, 0.9), (5.0, 4.0, 5.0)])
@pytest.mark.parametrize("odd", [False, True])
def test_region_is_the_one_that_filters_of_the_whole_hot_box_give(
    spacing_mm: tuple[float, float, float], odd: bool
) -> None:
    rng = np.random.default_rng(5)
    hu = np.rint(gaussian_filter(rng.normal(0, 4000, (6, 60, 70)), (0, 3, 3)) - 700).astype(np.int16)
    lungs, heat = np.zeros(hu.shape, bool), np.zeros(hu.shape, np.uint8)
    lungs[:, 5:55, 5:65] = True
    lungs[0, 5, 5] = not odd
    heat[1:3, 8:50, 10:60], heat[4, 30:58, 3:40] = 200, 39
    box = (slice(1, 5), slice(8, 55), slice(5, 60))
    window, thin = ([1, *sizes] for sizes in zip(*(_filter_sizes(mm) for mm in spacing_mm[1:]), strict=True))
    denser = uniform_filter(hu[box].astype(np.float32), window) > np.median(hu[lungs]) + 100
    small = minimum_filter(denser & lungs[box] & (heat[box] > 38), thin, mode="constant")
    labels, _ = label(maximum_filter(small, thin, mode="constant"))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found = region_of(heat, hu, lungs, spacing_mm)
    assert np.array_equal(found[box], (sizes * np.prod(spacing_mm) >= 500)[labels])
    assert found.any() and found.sum() == found[box].sum()


def _filter_sizes(mm: float) -> tuple[int, int]:
    """Pixels of the window that averages over 3 mm, and of the thinnest part, 4.5 mm."""
    return max(1, round(3.0 / mm)), max(1, 2 * round((4.5 / mm - 1) / 2) + 1)


@pytest.fixture(scope="module")
def pipeline() -> KnownPipeline:
    return open_pipeline(shipped_folder() / "demonstration", ALWAYS)


def test_what_is_localised_moves_with_the_lesion_and_overlaps_it(pipeline: KnownPipeline) -> None:
    phantom = make_phantom(4, slices=36, size=256)
    assert follows(pipeline, phantom)
    place, _ = two_places(phantom)
    hu = with_lesion(phantom, place)
    lesion = hu != phantom.hu
    found = analysed(pipeline, phantom, hu).localisation
    assert found is not None
    assert iou(found, lesion) > 3 * iou(phantom.lung_mask, lesion)


def test_a_volume_that_is_stored_turned_has_its_region_turned_too(pipeline: KnownPipeline) -> None:
    phantom = make_phantom(4, slices=36, size=256)
    volume = volume_of(with_lesion(phantom, two_places(phantom)[0]), phantom.spacing_mm)
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turn[:2, 3] = np.array(volume.hu.shape)[[2, 1]] - 1
    prone = replace(volume, hu=np.ascontiguousarray(volume.hu[:, ::-1, ::-1]), affine=volume.affine @ turn)
    pipeline.segmentation.lungs = phantom.lung_mask
    usual, turned = pipeline.run(volume).localisation, pipeline.run(prone).localisation
    assert usual is not None and turned is not None and usual.any()
    assert np.array_equal(turned, usual[:, ::-1, ::-1])


def test_localising_does_not_change_the_result_and_a_negative_one_marks_nothing(pipeline: KnownPipeline) -> None:
    phantom = make_phantom(5, slices=36, size=256, lesions="consolidation")
    pipeline.segmentation.lungs = phantom.lung_mask
    volume = volume_of(phantom.hu, phantom.spacing_mm)
    with_map, without, again = pipeline.run(volume), pipeline.run(volume, localise=False), pipeline.run(volume)
    assert with_map.probability == without.probability
    assert without.localisation is None and without.heat is None
    assert np.array_equal(with_map.heat, again.heat) and np.array_equal(with_map.localisation, again.localisation)
    assert with_map.localisation.any() and not (with_map.localisation & ~with_map.lung_mask).any()
    healthy = make_phantom(5, slices=36, size=256)
    negative = analysed(open_pipeline(shipped_folder() / "demonstration"), healthy, healthy.hu)
    assert not negative.positive and not negative.localisation.any() and not negative.heat.any()


def test_output_falls_without_the_lesion_and_most_in_its_zone(pipeline: KnownPipeline) -> None:
    phantom = make_phantom(4, slices=36, size=256)
    place, _ = two_places(phantom)  # the lower half of the left lung
    pipeline.segmentation.lungs = phantom.lung_mask
    hu = with_lesion(phantom, place)
    found = explain(pipeline, volume_of(hu, phantom.spacing_mm))
    falls = {part.what: found.log_odds - part.log_odds for part in found.occlusions}
    region = falls.pop("the region that drove the model")
    elsewhere = [fall for what, fall in falls.items() if "elsewhere" in what]
    zones = {what: fall for what, fall in falls.items() if "third" in what}
    assert region > 0 and region > 2 * max(map(abs, elsewhere))
    assert len(zones) == 12
    most = max(zones, key=lambda what: zones[what])
    assert most.startswith("left lung") and "upper" not in most


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_region_is_taken_away_where_it_is(order: str) -> None:
    profile = replace(AUTHORS, slices=replace(AUTHORS.slices, order=order))  # type: ignore[arg-type]
    z, y, x = np.indices((30, 64, 80))
    lungs = (np.abs(z - 16) < 11) & (np.abs(y - 30) < 20) & (np.abs(x - 42) < 30)
    lesion = (np.abs(z - 16) < 3) & (np.abs(y - 25) < 8) & (np.abs(x - 50) < 6)
    image, mask, place = seen(volume_of(np.where(lesion, 600, -1200).astype(np.int16), (2.0, 4.0, 4.0)), lungs, profile)
    found = on_input_grid(lesion, NetworkInput(image, mask, place))
    bright = image > 127
    assert np.count_nonzero(found & bright) / np.count_nonzero(found | bright) > 0.9
