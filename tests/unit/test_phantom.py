"""The synthetic chest: truth, determinism, and files as a scanner writes them."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.lesions import CONFOUNDERS, LESIONS
from inference.phantom.series import INTERCEPT_HU, TRANSFER_SYNTAXES, write_multiframe, write_series


def small(seed: int = 1, **options: object) -> Phantom:
    return make_phantom(seed, slices=24, size=96, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sick() -> Phantom:
    return small(5, lesions="mixed")


def test_the_same_seed_gives_the_same_phantom_and_another_seed_another(sick: Phantom) -> None:
    again, other = small(5, lesions="mixed"), small(6, lesions="mixed")
    assert np.array_equal(sick.hu, again.hu)
    assert np.array_equal(sick.lesion_mask, again.lesion_mask)
    assert not np.array_equal(sick.lung_mask, other.lung_mask)


def test_air_tissue_and_lung_have_their_densities(sick: Phantom) -> None:
    assert sick.hu.dtype == np.int16
    assert -1024 <= np.median(sick.hu[:, :4, :4]) <= -960
    healthy = sick.hu[sick.lung_mask & ~sick.lesion_mask]
    assert -920 < np.median(healthy) < -740
    body = sick.hu[(sick.hu > -50) & (sick.hu < 150)]
    assert 20 < np.median(body) < 70


def test_the_trachea_is_air_above_the_lungs() -> None:
    phantom = make_phantom(1, slices=40, size=128)
    top = phantom.hu[-2]
    assert not phantom.lung_mask[-2].any()
    middle = top[40:90, 50:78]
    assert (middle < -800).sum() >= 8


@pytest.mark.parametrize("seed", range(6))
def test_both_lungs_lie_within_the_volume_with_slices_above_and_below(seed: int) -> None:
    phantom = small(seed)
    assert not phantom.lung_mask[0].any()
    assert not phantom.lung_mask[-1].any()
    half = phantom.lung_mask.shape[2] // 2
    left, right = phantom.lung_mask[..., half:].sum(), phantom.lung_mask[..., :half].sum()
    assert 0.6 < left / right < 1.6
    assert 1800 < phantom.lung_volume_ml < 7500


@pytest.mark.parametrize("lesions", LESIONS)
def test_lesions_lie_in_both_lungs_and_are_denser_than_lung(lesions: str) -> None:
    phantom, healthy = small(3, lesions=lesions), small(3)
    assert phantom.covid == (lesions != "none")
    assert phantom.lesion_mask.any() == phantom.covid
    assert not (phantom.lesion_mask & ~phantom.lung_mask).any()
    if phantom.covid:
        half = phantom.lesion_mask.shape[2] // 2
        assert phantom.lesion_mask[..., :half].any() and phantom.lesion_mask[..., half:].any()
        lesion = phantom.hu[phantom.lesion_mask].astype(float).mean()
        assert lesion > healthy.hu[phantom.lesion_mask].astype(float).mean() + 80


@pytest.mark.parametrize("confounder", CONFOUNDERS)
def test_a_confounder_changes_the_image_and_leaves_the_truth_negative(confounder: str) -> None:
    changed = small(4, confounders=(confounder,))
    assert not changed.covid and not changed.lesion_mask.any()
    assert not np.array_equal(changed.hu, small(4).hu)


def test_a_name_that_is_no_lesion_is_refused() -> None:
    with pytest.raises(ValueError, match="lesions are one of"):
        small(1, lesions="flu")


def test_corners_outside_the_field_of_view_hold_the_padding() -> None:
    phantom = small(2, scanner=Scanner(padding_hu=-3024))
    assert (phantom.hu[:, 0, 0] == -3024).all()
    assert (phantom.hu[:, 48, 48] > -1100).all()


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES)
@pytest.mark.parametrize(("bits", "padding_hu"), [(12, None), (16, None), (16, -3024)])
def test_written_files_hold_the_same_hu(
    tmp_path: Path, transfer_syntax: str, bits: int, padding_hu: int | None
) -> None:
    phantom = make_phantom(7, slices=2, size=64, scanner=Scanner(padding_hu=padding_hu))
    paths = write_series(phantom, tmp_path / "classic", transfer_syntax=transfer_syntax, bits=bits)
    read = np.stack([pydicom.dcmread(path).pixel_array.astype(int) + INTERCEPT_HU for path in paths])
    assert np.array_equal(read, phantom.hu)
    path = write_multiframe(phantom, tmp_path / "enhanced.dcm", transfer_syntax=transfer_syntax, bits=bits)
    assert np.array_equal(pydicom.dcmread(path).pixel_array.astype(int) + INTERCEPT_HU, phantom.hu)


def test_headers_name_a_synthetic_patient_and_place_every_slice(tmp_path: Path, sick: Phantom) -> None:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in write_series(sick, tmp_path)]
    assert {str(header.PatientName) for header in headers} == {"PHANTOM^POSITIVE"}
    assert len({header.SOPInstanceUID for header in headers}) == len(sick.hu)
    assert len({(header.SeriesInstanceUID, header.FrameOfReferenceUID) for header in headers}) == 1
    assert all(header.SOPInstanceUID.startswith("2.25.") for header in headers)
    steps = np.diff([float(header.ImagePositionPatient[2]) for header in headers])
    assert np.allclose(steps, sick.spacing_mm[0], atol=1e-3)
    assert list(headers[0].ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]


def test_uids_follow_from_the_phantom(tmp_path: Path, sick: Phantom) -> None:
    def series_uid(phantom: Phantom, name: str) -> str:
        return str(pydicom.dcmread(write_series(phantom, tmp_path / name)[0]).SeriesInstanceUID)

    assert series_uid(sick, "first") == series_uid(sick, "second")
    assert series_uid(sick, "first") != series_uid(small(6), "other")
