"""How a chest lies: turned and mirrored images, lost lung bases, arms, and what the anatomy must confirm."""

import dataclasses

import numpy as np
import pytest

from benchmarks.degrade import phantom_volume
from inference.anatomy.cells import cells_of
from inference.anatomy.regions import find_air
from inference.covid.loading import load_pipeline
from inference.covid.pipeline import Pipeline
from inference.errors import UnsuitableSeries
from inference.models.cards import shipped_folder
from inference.models.registry import DEMONSTRATION
from inference.suitability.check import Policy, check
from inference.volume.ct_volume import CTVolume, as_stored, upright


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> CTVolume:
    return phantom_volume(1, tmp_path_factory.mktemp("phantom"), size=256, slices=40)


def code_of(volume: CTVolume) -> str:
    with pytest.raises(UnsuitableSeries) as refused:
        check(volume, Policy())
    return refused.value.code


def stored_turned(volume: CTVolume, down: bool, across: bool) -> CTVolume:
    """The same voxels at the same places, stored with rows or columns the other way round."""
    _, rows, columns = volume.hu.shape
    turn = np.diag([-1.0 if across else 1.0, -1.0 if down else 1.0, 1.0, 1.0])
    turn[:2, 3] = [columns - 1 if across else 0, rows - 1 if down else 0]
    hu = volume.hu[:, :: -1 if down else 1, :: -1 if across else 1]
    return dataclasses.replace(volume, hu=hu, affine=volume.affine @ turn)


@pytest.mark.parametrize(("down", "across"), [(True, True), (False, True), (True, False)])
def test_a_volume_stored_another_way_round_is_turned_upright_voxel_by_voxel(
    chest: CTVolume, down: bool, across: bool
) -> None:
    stored = stored_turned(chest, down, across)
    turned = upright(stored)
    assert turned.flipped == (down, across)
    np.testing.assert_array_equal(turned.hu, chest.hu)
    np.testing.assert_allclose(turned.affine, chest.affine, atol=1e-9)
    np.testing.assert_array_equal(as_stored(turned.hu, turned), stored.hu)
    check(stored, Policy())


def test_an_upright_volume_is_left_as_it_is(chest: CTVolume) -> None:
    assert upright(chest) is chest


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(shipped_folder() / DEMONSTRATION, "cpu")


def test_a_prone_patient_stored_turned_gets_the_same_finding_with_its_mask_on_the_stored_grid(
    chest: CTVolume, pipeline: Pipeline
) -> None:
    prone = stored_turned(chest, True, True)
    expected, found = pipeline.run(chest), pipeline.run(prone)
    assert found.probability == expected.probability
    np.testing.assert_array_equal(found.lung_mask, expected.lung_mask[:, ::-1, ::-1])
    assert (found.left_lung_ml, found.right_lung_ml) == (expected.left_lung_ml, expected.right_lung_ml)


def test_a_mirror_image_is_seen_by_the_side_of_the_heart(chest: CTVolume) -> None:
    assert code_of(dataclasses.replace(chest, hu=chest.hu[:, :, ::-1])) == "MIRRORED"


def air_of(volume: CTVolume) -> np.ndarray:
    """The air-filled lungs on the volume's own grid, coarsely."""
    cells = cells_of(volume)
    return cells.to_voxels(find_air(cells).lungs).copy()


def consolidated(volume: CTVolume, mask: np.ndarray) -> CTVolume:
    hu = volume.hu.copy()
    hu[mask] = np.random.default_rng(0).normal(25, 20, int(mask.sum())).astype(np.int16)
    return dataclasses.replace(volume, hu=hu)


@pytest.mark.parametrize("right", [True, False])
def test_a_lung_that_lost_its_base_is_not_upside_down(chest: CTVolume, right: bool) -> None:
    base = air_of(chest)
    levels = np.flatnonzero(base.any(axis=(1, 2)))
    middle, third = chest.hu.shape[2] // 2, len(levels) // 3
    base[:, :, middle:] &= not right
    base[:, :, :middle] &= right
    # Up to a slanting surface, as fluid or a raised diaphragm has.
    slope = np.arange(chest.hu.shape[1]) * third / chest.hu.shape[1]
    above = np.arange(len(chest.hu))[:, None] > levels[0] + third + slope - third / 2
    base &= ~above[:, :, None]
    check(consolidated(chest, base), Policy())


def test_a_lung_without_any_air_is_refused_for_its_balance(chest: CTVolume) -> None:
    lost = air_of(chest)
    lost[:, :, : chest.hu.shape[2] // 2] = False
    assert code_of(consolidated(chest, lost)) == "LUNG_BALANCE"


def test_an_arm_beside_the_trunk_moves_no_rule(chest: CTVolume) -> None:
    rows, columns = np.indices(chest.hu.shape[1:])
    body = np.flatnonzero((chest.hu[20] > -300).any(axis=0))
    for column in (body[0] - 14, body[-1] + 14):
        arm = np.hypot(rows - 128, columns - column) < 25
        hu = chest.hu.copy()
        hu[:, arm] = np.maximum(hu[:, arm], np.random.default_rng(1).normal(40, 15, hu[:, arm].shape).astype(np.int16))
        check(dataclasses.replace(chest, hu=hu), Policy())
