"""Air told apart by its pixels, and the network's mask confined to the lungs."""

from pathlib import Path

import numpy as np
import pytest

from inference.anatomy.cells import cells_of
from inference.anatomy.confine import confine
from inference.anatomy.regions import Air, find_air
from inference.covid.loading import load_pipeline
from inference.evaluation.overlap import dice
from inference.models.registry import find_model
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.series import write_series
from inference.volume.ct_volume import CTVolume
from inference.volume.load import load


def volume_of(phantom: Phantom) -> CTVolume:
    """The phantom as a volume without files."""
    affine = np.diag([*phantom.spacing_mm[::-1], 1.0])
    return CTVolume(phantom.hu, phantom.spacing_mm, affine, (), "1.2.3", "1.2.4")


def air_of(phantom: Phantom) -> Air:
    return find_air(cells_of(volume_of(phantom)))


def everything(phantom: Phantom) -> np.ndarray:
    """The mask of a network that takes all air for lung, outside, in the airways and in the bowel."""
    return ((phantom.hu < -300) | phantom.lung_mask).astype(np.uint8)


@pytest.mark.parametrize("spacing", [1.25, 3.0, 8.0])
def test_a_network_that_takes_all_air_for_lung_is_confined_to_the_lungs(spacing: float) -> None:
    phantom = make_phantom(4, size=256, spacing_mm=(spacing, 1.4, 1.4), scanner=Scanner(below_mm=60, above_mm=60))
    found = confine(everything(phantom), air_of(phantom))
    assert dice(found, phantom.lung_mask) > 0.96
    assert found.sum() == pytest.approx(phantom.lung_mask.sum(), rel=0.03)
    ends = np.flatnonzero(phantom.lung_mask.any(axis=(1, 2)))
    assert not found[: max(0, ends[0] - 1)].any() and not found[ends[-1] + 2 :].any()


@pytest.mark.parametrize(
    ("extras", "least"),
    [
        (("neck", "arms", "bowel", "stomach", "tracheostomy"), 0.97),
        (("hiatal-hernia", "azygos-lobe"), 0.97),
        (("pneumonectomy",), 0.97),
        (("collapsed-lobe", "neck"), 0.95),
        (("bulla", "stomach"), 0.97),
        (("pneumothorax", "bowel"), 0.97),
        (("collapsed-lobe", "pneumothorax"), 0.95),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_beside_the_lungs_goes_and_what_is_changed_in_them_stays(extras: tuple[str, ...], least: float) -> None:
    pixel = 1.7 if "arms" in extras else 1.4
    seed = 4 + len(extras[0])
    scanner = Scanner(below_mm=60, above_mm=60)
    phantom = make_phantom(seed, size=256, spacing_mm=(4.0, pixel, pixel), extras=extras, scanner=scanner)
    found = confine(everything(phantom), air_of(phantom))
    assert dice(found, phantom.lung_mask) > least
    outside = float((found & ~phantom.lung_mask).sum()) / float(phantom.lung_mask.sum())
    assert outside < 0.015, f"{outside:.1%} of the lungs' volume is something else"


def test_the_windpipe_is_found_below_a_tracheostomy() -> None:
    scanner = Scanner(below_mm=20, above_mm=60)
    phantom = make_phantom(4, size=256, spacing_mm=(3.0, 1.4, 1.4), extras=("neck", "tracheostomy"), scanner=scanner)
    air = air_of(phantom)
    middle = air.airways[len(air.airways) // 2 : -30]
    assert middle.any(axis=(1, 2)).mean() > 0.9
    assert not (air.outside & air.lungs).any() and not (air.airways & air.lungs).any()


def test_foam_between_the_back_and_undeclared_padding_is_not_lung() -> None:
    phantom = make_phantom(4, size=256, spacing_mm=(4.0, 1.4, 1.4))
    hu, (rows, columns) = phantom.hu.copy(), np.indices(phantom.hu.shape[1:])
    back = int(np.flatnonzero((hu[len(hu) // 2] > -300).any(axis=1))[-1])
    foam = np.random.default_rng(0).normal(-880, 20, hu[:, back + 6 :].shape)
    hu[:, back + 2 : back + 6] = -200
    hu[:, back + 6 :] = np.where(np.abs(columns[back + 6 :] - 127.5) > 35, foam, -1000)
    hu[:, np.hypot(rows - 127.5, columns - 127.5) > 128] = 0
    lungs = find_air(cells_of(CTVolume(hu, phantom.spacing_mm, np.eye(4), (), "1.2.3", "1.2.4"))).lungs
    assert lungs.any() and not lungs[:, back:].any()


def test_nothing_is_lung_where_there_is_none() -> None:
    hu = np.full((40, 128, 128), 40, np.int16)
    hu[:, :10] = hu[:, -10:] = -1000
    air = find_air(cells_of(CTVolume(hu, (3.0, 3.0, 3.0), np.eye(4), (), "1.2.3", "1.2.4")))
    assert not air.lungs.any() and not air.airways.any()
    assert not confine(np.ones(hu.shape, np.uint8), air).any()


def test_a_finding_measures_the_confined_mask_and_its_probability_is_of_the_raw_one(tmp_path: Path) -> None:
    scanner = Scanner(below_mm=60, above_mm=60)
    extras = ("neck", "bowel", "stomach")
    phantom = make_phantom(6, size=256, spacing_mm=(6.0, 1.4, 1.4), extras=extras, scanner=scanner)
    volume = load(write_series(phantom, tmp_path))
    pipeline = load_pipeline(find_model(tmp_path, "demonstration"), "cpu", threads=1)
    before, given = pipeline.run_and_show(volume)
    air = air_of(phantom)
    assert not before.lung_mask[air.cells.to_voxels(air.airways | air.outside)].any()
    assert dice(before.lung_mask, phantom.lung_mask) > 0.95
    assert before.probability == pytest.approx(pipeline.verdict_on(given.image, given.mask)[0], abs=1e-9)
    assert "MASK_GROUND" in [one.code for one in before.checks]
