"""Which volumes a model may see: every rule refuses by name, and nothing harmless is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.degradations import Images, Variant, read_images
from benchmarks.degrade import RIGHT, Base, Models, phantom_volume, try_variant
from benchmarks.variants import all_variants
from inference.anatomy.cells import cells_of
from inference.anatomy.regions import find_air
from inference.errors import ModelError, UnsuitableSeries
from inference.phantom.chest import make_phantom
from inference.preprocess import mask_box
from inference.suitability.body import shrink
from inference.suitability.check import Policy, check, check_mask
from inference.suitability.ground import check_crop, check_ground
from inference.suitability.landmarks import body_middle
from inference.volume.ct_volume import CTVolume
from inference.volume.folder import find_series
from inference.volume.instances import age_years
from inference.volume.load import load

REAL = ("MD04_every2nd", "MD05_every2nd", "lungdx_A0002_B40f_30slices")
NAMES = [variant.name for variant in all_variants([[]])]


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> CTVolume:
    """A small phantom, through files."""
    return phantom_volume(1, tmp_path_factory.mktemp("phantom"), size=256, slices=40)


@pytest.fixture(scope="module")
def images(chest: CTVolume) -> Images:
    return read_images(chest)


@pytest.fixture(scope="module")
def lungs() -> np.ndarray:
    return make_phantom(1, size=256, slices=40, lesions="ground-glass").lung_mask


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    other = read_images(phantom_volume(3, tmp_path_factory.mktemp("other"), size=256, slices=36))
    return {variant.name: variant for variant in all_variants([other])}


@pytest.mark.parametrize("name", NAMES)
def test_each_degradation_is_refused_for_its_reason_and_no_harmless_change_is(
    chest: CTVolume, images: Images, variants: dict[str, Variant], name: str
) -> None:
    outcome = try_variant("phantom", images, variants[name], Base(chest), Policy(), Models())
    assert outcome.verdict in RIGHT, outcome.seen


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_chests_pass(shared: Path, name: str) -> None:
    (paths,) = find_series(shared / "data/dicom" / name).values()
    checks = check(load(paths), Policy())
    assert [one.code for one in checks] == ["IMAGE_TYPE", "SAMPLING", "ORIENTATION", "HU", "CHEST"]


@pytest.mark.shared
def test_a_real_chest_resampled_to_64_pixels_is_refused_and_a_card_may_allow_it(shared: Path) -> None:
    (paths,) = find_series(shared / "data/dicom/cip_ct64_79slices").values()
    volume = load(paths)
    with pytest.raises(UnsuitableSeries, match="MATRIX"):
        check(volume, Policy())
    check(volume, Policy.from_table({"matrix": [64, 2048], "pixel_mm": [0.2, 5.0]}))


def code_of(volume: CTVolume, policy: Policy | None = None) -> str:
    with pytest.raises(UnsuitableSeries) as refused:
        check(volume, policy or Policy())
    assert refused.value.sentence.endswith(".")
    return refused.value.code


def with_header(volume: CTVolume, **values: Any) -> CTVolume:
    return dataclasses.replace(volume, header=dataclasses.replace(volume.header, **values))


@pytest.mark.parametrize(
    ("image_type", "code"),
    [
        (("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"), None),
        (("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM7 SPI DUAL", "STD"), None),
        (("ORIGINAL", "PRIMARY", "AXIAL", "HELIX", "ELECTRON", "UNSPECIFIED"), None),
        (("ORIGINAL", "PRIMARY", "VOLUME", "NONE"), None),
        (("ORIGINAL", "PRIMARY"), None),
        (("DERIVED", "PRIMARY", "AXIAL"), None),
        ((), None),
        (("DERIVED", "SECONDARY"), "DERIVED"),
        (("ORIGINAL", "SECONDARY", "AXIAL"), "DERIVED"),
        (("DERIVED", "PRIMARY", "MPR"), "DERIVED"),
        (("DERIVED", "PRIMARY", "AXIAL", "MINIP"), "DERIVED"),
        (("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"), "DERIVED"),
        (("DERIVED", "PRIMARY", "AXIAL", "IODINE"), "SPECTRAL_MAP"),
        (("ORIGINAL", "PRIMARY", "LOCALIZER"), "LOCALIZER"),
    ],
)
def test_image_types_of_many_vendors(chest: CTVolume, image_type: tuple[str, ...], code: str | None) -> None:
    volume = with_header(chest, image_type=image_type)
    if code is None:
        check(volume, Policy())
    else:
        assert code_of(volume) == code


def test_derived_primary_is_refused_where_a_derivation_is_described_or_the_card_says_so(chest: CTVolume) -> None:
    volume = with_header(chest, image_type=("DERIVED", "PRIMARY", "AXIAL"), derivation="subtracted")
    assert code_of(volume) == "DERIVED"
    assert code_of(with_header(volume, derivation=""), Policy(derived_primary=False)) == "DERIVED"


@pytest.mark.parametrize(
    "part", ["CHEST", "THORAX", "LUNG", "", "CHESTABDPELVIS", "WHOLEBODY", "Chest_to_Pelvis", "XYZ"]
)
def test_body_parts_that_hold_a_chest_are_left_to_the_pixels(chest: CTVolume, part: str) -> None:
    check(with_header(chest, body_part=part), Policy())


@pytest.mark.parametrize("part", ["HEAD", "ABDOMEN", "PELVIS", "KNEE", "CSPINE", "NECK", "EXTREMITY"])
def test_other_body_parts_are_refused(chest: CTVolume, part: str) -> None:
    assert code_of(with_header(chest, body_part=part)) == "BODY_PART"


@pytest.mark.parametrize("text", ["Thorax 1.0 B70f", "LUNG 1.25MM", "ROUTINE QUALITY CHEST", "Squamous", "CHEST 3D"])
def test_everyday_descriptions_pass(chest: CTVolume, text: str) -> None:
    check(with_header(chest, series_description=text, protocol_name=text), Policy())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Chest_Phantom_01", "PHANTOM_OR_QA"),
        ("QC daily", "PHANTOM_OR_QA"),
        ("AX MIP 8x3", "DERIVED"),
        ("MonoE 70keV", "SPECTRAL_MAP"),
        ("Topogram 0.6", "LOCALIZER"),
        ("Dose Report", "NOT_DIAGNOSTIC"),
    ],
)
def test_telling_descriptions_are_refused(chest: CTVolume, text: str, code: str) -> None:
    assert code_of(with_header(chest, series_description=text)) == code


@pytest.mark.parametrize(
    ("step", "spacing", "code"), [(2, 2.5, "MISSING_SLICES"), (1, 2.5, None), (0, 2.5, None), (2, 4.0, None)]
)
def test_thin_slices_whose_numbers_all_skip_are_not_all_there(
    chest: CTVolume, step: int, spacing: float, code: str | None
) -> None:
    stated = with_header(chest, number_step=step, spacing_between_slices_mm=None, slice_thickness_mm=spacing)
    volume = dataclasses.replace(stated, spacing_mm=(spacing, *chest.spacing_mm[1:]))
    policy = Policy(lung_height_mm=(60, 420), extent_mm=(60, 450), aerated_ml=(300, 12000))
    if code is None:
        check(volume, policy)
    else:
        assert code_of(volume, policy) == code


def test_padding_around_a_round_field_of_view_is_no_air_and_no_tissue(chest: CTVolume) -> None:
    rows, columns = np.indices(chest.hu.shape[1:])
    outside = np.hypot(rows - 127.5, columns - 127.5) > 127
    for padding in (-3024, -2000, -1024):
        hu = chest.hu.copy()
        hu[:, outside] = padding
        check(dataclasses.replace(chest, hu=hu), Policy())


def test_air_is_found_in_the_airways_where_the_image_has_no_background(chest: CTVolume) -> None:
    (body,) = ndimage.find_objects((chest.hu[20] > -200).astype(np.uint8))
    lung_box = tuple(slice(side.start + 6, side.stop - 6) for side in body)
    hu = chest.hu.copy()
    outside = np.ones(hu.shape[1:], bool)
    outside[lung_box] = False
    hu[:, outside] = -3024
    hu[hu < -2000] = -3024
    assert any(one.code == "HU" for one in check(dataclasses.replace(chest, hu=hu), Policy()))


@pytest.mark.parametrize("shift", [-90, 70, 90, 150, 400])
def test_values_shifted_off_the_hounsfield_scale_are_seen(chest: CTVolume, shift: int) -> None:
    assert code_of(dataclasses.replace(chest, hu=(chest.hu + shift).astype(np.int16))) == "HU_IMPLAUSIBLE"


def test_a_true_mask_passes(chest: CTVolume, lungs: np.ndarray) -> None:
    (found,) = check_mask(chest, lungs, Policy(), find_air(cells_of(chest)))
    assert found.code == "LUNG_MASK"


def mask_code(volume: CTVolume, mask: np.ndarray) -> str:
    with pytest.raises(UnsuitableSeries) as refused:
        check_mask(volume, mask, Policy(), find_air(cells_of(volume)))
    return refused.value.code


def test_masks_that_cannot_be_lungs_are_refused(chest: CTVolume, lungs: np.ndarray) -> None:
    middle = chest.hu.shape[2] // 2
    one_side = lungs.copy()
    one_side[:, :, middle - 8 :] = False
    one_side[15:20, 100:120, -40:-30] = True  # a little of the other side
    scattered = lungs.copy()
    scattered[:, ::40, :] = scattered[:, :, ::40] = scattered[::5] = False
    half = lungs.copy()
    half[:20] = False
    sideways = lungs.copy()
    sideways[10:30, 60:200, 0] = True
    assert mask_code(chest, np.zeros_like(lungs)) == "NO_LUNG_MASK"
    assert mask_code(chest, ndimage.binary_erosion(lungs, iterations=9)) == "LUNG_VOLUME"
    assert mask_code(chest, np.roll(lungs, 12, axis=0)) == "LUNG_CUT_OFF"
    assert mask_code(chest, one_side) == "LUNG_BALANCE"
    assert mask_code(chest, scattered) == "MASK_FRAGMENTED"
    assert mask_code(chest, half) == "MASK_MISSES_LUNG"
    assert mask_code(chest, sideways) == "LUNG_OUTSIDE_FIELD"


def test_a_card_sets_the_policy_and_a_wrong_key_is_an_error() -> None:
    policy = Policy.from_table({"extent_mm": [172, 588], "derived_primary": False})
    assert policy.extent_mm == (172, 588) and not policy.derived_primary and policy.slices == Policy().slices
    with pytest.raises(ModelError, match="extent"):
        Policy.from_table({"extent": [172, 588]})
    with pytest.raises(ModelError, match="gap_ratio"):
        Policy.from_table({"gap_ratio": "2"})


@pytest.mark.parametrize(
    ("text", "years"),
    [("008Y", 8.0), ("018M", 1.5), ("010D", 10 / 365.25), ("000Y", None), ("", None), ("8", None), ("XXXY", None)],
)
def test_patients_age_is_read_as_the_standard_writes_it(text: str, years: float | None) -> None:
    assert age_years(text) == (None if years is None else pytest.approx(years))


def test_an_unknown_age_passes_with_a_remark_and_the_card_sets_the_range(chest: CTVolume) -> None:
    assert "AGE_UNKNOWN" in [one.code for one in check(with_header(chest, age_years=None), Policy())]
    assert code_of(with_header(chest, age_years=17.9)) == "PATIENT_AGE"
    check(with_header(chest, age_years=17.9), Policy(age_years=(16, 120)))


def test_a_tip_of_lung_in_an_end_slice_is_said(chest: CTVolume) -> None:
    first = int(np.flatnonzero(find_air(cells_of(chest)).lungs.any(axis=(1, 2)))[0])
    cut = dataclasses.replace(chest, hu=chest.hu[first + 1 :], slices=chest.slices[first + 1 :])
    sentence = next(one.sentence for one in check(cut, Policy()) if one.code == "CHEST")
    assert "cm2 in the lowest slice" in sentence and not sentence.endswith(", whole.")


def test_a_network_off_its_ground_is_refused_with_how_much(lungs: np.ndarray) -> None:
    raw = lungs.astype(np.uint8)
    raw[10:30, :60] = 1
    inside = slice(8, 32)
    off_ml = float(np.count_nonzero(raw[inside].astype(bool) & ~lungs[inside]))
    with pytest.raises(UnsuitableSeries, match=f"{off_ml:.0f} mL") as refused:
        check_ground(raw, lungs, inside, 1.0, Policy(outside_lungs_share=0.05))
    assert refused.value.code == "MASK_OFF_GROUND"
    assert check_ground(raw, lungs, inside, 1.0, Policy(outside_lungs_share=0.9)).code == "MASK_GROUND"
    assert check_ground(lungs.astype(np.uint8), lungs, inside, 1.0, Policy()).sentence.startswith("0.0%")


def test_a_stray_voxel_that_blows_up_the_crop_is_refused_and_its_slice_is_named(lungs: np.ndarray) -> None:
    inside = slice(8, 32)
    raw = lungs.astype(np.uint8)
    check_crop(mask_box(raw[inside]), raw, lungs, inside, "mask-box", Policy())
    raw[11, 0, 0] = raw[11, -1, -1] = 1
    # A leak beside the lungs is larger, and has no part in the box.
    raw[20] |= np.roll(raw[20], 5, axis=0)
    box = mask_box(raw[inside])
    with pytest.raises(UnsuitableSeries, match="CROP_IMPLAUSIBLE") as refused:
        check_crop(box, raw, lungs, inside, "mask-box", Policy())
    evidence = refused.value.evidence
    assert evidence is not None and (evidence.z, evidence.box) == (11, (box[1], box[2]))
    check_crop(box, raw, lungs, inside, "none", Policy())


def test_without_lungs_the_middle_of_the_body_is_that_of_the_image(chest: CTVolume) -> None:
    coarse = shrink(chest)
    assert body_middle(coarse, np.zeros(coarse.hu.shape, bool)) == (coarse.hu.shape[2] - 1) / 2
