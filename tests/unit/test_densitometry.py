"""Lung densitometry against phantoms of known emphysema, and against a computation of its own by SimpleITK."""

import gc
import weakref
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from inference.anatomy.cells import cells_of
from inference.anatomy.regions import air_in, find_air
from inference.comparing import Examination, Scan
from inference.densitometry import codes
from inference.densitometry.change import changes, in_words
from inference.densitometry.density import LOWEST_HU, Part, measure, percentile_of, thirds
from inference.densitometry.kernels import sharpness
from inference.densitometry.lungs import Lungs, find_lungs
from inference.densitometry.model import Densitometry
from inference.densitometry.noise import noise_in
from inference.densitometry.open_gas import with_open_gas
from inference.densitometry.settings import Reference, Settings
from inference.errors import ModelError, UnsuitableSeries
from inference.evaluation.overlap import dice
from inference.isolation.answer import decode_output
from inference.isolation.known_codes import require_known
from inference.isolation.wire import encode_output
from inference.models.cards import read_card, shipped_folder
from inference.models.kinds import find_kind, plug_of
from inference.output_check import check_output
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.emphysema import EmphysemaSettings
from inference.plug import DeviceChoice, Measurement, Output
from inference.suitability.policy import Policy
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice, upright
from inference.volume.scans import load_scan, scans_in

POLICY = Policy(matrix=(64, 2048), pixel_mm=(0.2, 5.0))
SOFT = SeriesHeader(modality="CT", kernel="B30f", age_years=60)
HEALTHY = Reference("laa_percent", 2.0, 2.7, "92 healthy people", "Someone 2012")


@cache
def phantom(
    seed: int, share: float, noise_hu: float = 10.0, blur_mm: float = 0.75, side: int = 0, size: int = 128
) -> Phantom:
    scanner, emphysema = Scanner(noise_hu=noise_hu, blur_mm=blur_mm), EmphysemaSettings(share, side=side)
    return make_phantom(seed, slices=size // 4, size=size, scanner=scanner, emphysema=emphysema)


def volume_of(made: Phantom, header: SeriesHeader = SOFT) -> CTVolume:
    affine = np.diag([*made.spacing_mm[::-1], 1.0])
    slices = tuple(SourceSlice(Path("x"), str(z), "1.2", 0, (0, 0, 0)) for z in range(len(made.hu)))
    return CTVolume(made.hu, made.spacing_mm, affine, slices, "1.2.3", "1.2.4", header)


def lungs_of(volume: CTVolume) -> Lungs:
    return find_lungs(volume.hu, volume.spacing_mm, find_air(cells_of(volume)))


def analyse(volume: CTVolume, **settings: object) -> Output:
    output = Densitometry(Settings(**settings), POLICY).analyse(volume)
    check_output(output, volume)
    return output


def value(output: Output, concept: object, side: str = "both", zone: str | None = None) -> float:
    (found,) = [
        item.value
        for item in output.measurements
        if item.concept == concept
        and item.laterality == codes.LATERALITY[side]
        and item.topography == (codes.ZONE[zone] if zone else None)
    ]
    return found


@pytest.mark.parametrize(("seed", "share"), [(2, 0.15), (3, 0.35)])
def test_the_share_of_known_emphysema_is_found_within_a_fifth_of_a_percentage_point(seed, share):
    made = phantom(seed, share, size=192)
    volume = volume_of(made)
    lungs = lungs_of(volume)
    found = measure(made.hu, lungs, volume.voxel_ml)
    assert abs(found.parts[Part()].laa_percent - 100 * made.emphysema.share) < 0.2
    assert abs(found.parts[Part()].laa_percent - 100 * share) < 3
    half = np.arange(made.hu.shape[2]) < made.hu.shape[2] / 2
    for side, mine in (("right", half), ("left", ~half)):
        assert abs(found.parts[Part(side)].laa_percent - 100 * made.emphysema.share_in(mine)) < 0.2
    for third, where in thirds(lungs).items():
        part = np.zeros((len(made.hu), 1, 1), bool)
        part[where] = True
        for side, mine in (("both", half | ~half), ("right", half), ("left", ~half)):
            known = 100 * made.emphysema.share_in(part & mine)
            assert abs(found.parts[Part(side, third)].laa_percent - known) < 0.2


def test_emphysema_of_one_lung_is_reported_in_that_lung_and_counts_half_in_both():
    output = analyse(volume_of(phantom(2, 0.3, side=-1)))
    right, left, both = (value(output, codes.LAA_PERCENT, side) for side in ("right", "left", "both"))
    assert 25 < right < 31 and left < 0.5
    assert left < both < right
    low = {segment.title: segment for segment in output.segments}["Low attenuation"].mask
    middle = low.shape[2] // 2
    assert np.count_nonzero(low[:, :, :middle]) > 50 * np.count_nonzero(low[:, :, middle:])


def test_the_lungs_are_the_phantoms_lungs_right_and_left():
    made = phantom(2, 0.15, size=192)
    lungs = lungs_of(volume_of(made))
    half = np.arange(made.hu.shape[2]) < made.hu.shape[2] / 2
    assert dice(lungs.right, made.lung_mask & half) > 0.98
    assert dice(lungs.left, made.lung_mask & ~half) > 0.98
    assert not (lungs.right & lungs.left).any()


def test_lungs_that_touch_are_told_apart_even_if_no_plane_lies_between_them():
    made = phantom(2, 0.15, size=192)
    hu, half = made.hu.copy(), np.arange(made.hu.shape[2]) < made.hu.shape[2] / 2
    levels = np.flatnonzero(made.lung_mask.any(axis=(1, 2)))
    top, width = levels[0] + len(levels) * 2 // 3, made.hu.shape[2]
    rows = np.flatnonzero(made.lung_mask[top].any(axis=1))
    bridge = np.zeros(hu.shape, bool)
    bridge[top : top + 4, rows[0] + 4 : rows[0] + 8, width // 2 - 25 : width // 2 + 25] = True
    hu[bridge] = np.minimum(hu[bridge], -870)
    lungs = lungs_of(volume_of(replace(made, hu=sheared(hu))))
    assert lungs.both[sheared(bridge)].mean() > 0.9
    assert dice(lungs.right, sheared(made.lung_mask & half)) > 0.98
    assert dice(lungs.left, sheared(made.lung_mask & ~half)) > 0.98


def sheared(array: np.ndarray) -> np.ndarray:
    """Rows moved sideways the more the farther back they lie: no sagittal plane parts the lungs."""
    middle = array.shape[1] // 2
    return np.stack([np.roll(array[:, y], round((y - middle) * 0.35), axis=1) for y in range(array.shape[1])], axis=1)


def test_air_on_the_diaphragm_that_is_open_to_the_lung_is_lung_and_the_stomachs_is_not():
    made = make_phantom(9, slices=48, size=192, scanner=Scanner(noise_hu=10.0), emphysema=EmphysemaSettings(0.4))
    lungs = lungs_of(volume_of(made))
    assert np.count_nonzero(made.emphysema.low & ~lungs.parenchyma) < 0.005 * np.count_nonzero(made.emphysema.low)
    full = make_phantom(3, slices=48, size=192, extras=("stomach", "hiatal-hernia"))
    air = find_air(cells_of(volume_of(full)))
    assert with_open_gas(air) is air


def test_the_windpipe_is_not_part_of_the_lungs():
    made = phantom(2, 0.0)
    volume = volume_of(made)
    airways = find_air(cells_of(volume))
    assert not (lungs_of(volume).both & airways.cells.to_voxels(airways.airways)).any()
    assert value(analyse(volume), codes.LAA_PERCENT) < 0.3


def test_percentile_and_mean_follow_from_the_voxels():
    values = np.random.default_rng(5).normal(-870, 40, 5000).round().astype(np.int16).reshape(5, 25, 40)
    right = np.zeros(values.shape, bool)
    right[:, :, :20] = True
    whole = np.ones(values.shape, bool)
    lungs = Lungs(right, ~right, whole, (slice(0, 5), slice(0, 25), slice(0, 40)), 0.0)
    found = measure(values, lungs, 0.5).parts
    assert found[Part()].mean_hu == pytest.approx(values.mean())
    assert found[Part("left")].mean_hu == pytest.approx(values[~right].mean())
    assert found[Part()].laa_percent == pytest.approx(100 * (values < -950).mean())
    assert abs(found[Part()].perc15_hu - np.sort(values.ravel())[750]) <= 0.5
    assert found[Part("right")].volume_ml == pytest.approx(right.sum() / 2)
    assert sum(found[Part("both", third)].voxels for third in ("upper", "middle", "lower")) == values.size


def test_a_percentile_tells_changes_of_less_than_one_hu_apart():
    counts = np.zeros(4201, np.int64)
    counts[-950 - LOWEST_HU : -940 - LOWEST_HU] = 100
    assert percentile_of(counts, 15) == pytest.approx(-949.0)
    assert percentile_of(counts, 16) == pytest.approx(-948.9)
    assert np.isnan(percentile_of(np.zeros(4201, np.int64), 15))


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("B30f", "soft"),
        ("Br40f\\3", "soft"),
        ("STANDARD", "soft"),
        ("FC08", "soft"),
        ("B", "soft"),
        ("B50f", "sharp"),
        ("B70f", "sharp"),
        ("Bl57d", "sharp"),
        ("LUNG", "sharp"),
        ("BONEPLUS", "sharp"),
        ("FC51", "sharp"),
        ("YA", "sharp"),
        ("YD", "sharp"),
        ("", "unknown"),
        ("MYSTERY", "unknown"),
    ],
)
def test_the_sharpness_of_a_kernel_follows_from_its_name(kernel, expected):
    assert sharpness(kernel) == expected


def test_a_sharp_kernel_is_smoothed_and_said_or_refused_as_the_card_says():
    made = phantom(2, 0.15, noise_hu=30.0, blur_mm=0.35, size=192)
    truth = 100 * made.emphysema.share
    sharp = volume_of(made, replace(SOFT, kernel="B60f"))
    output = analyse(sharp)
    error, unfiltered = (abs(value(one, codes.LAA_PERCENT) - truth) for one in (output, analyse(volume_of(made))))
    assert error < 0.5 < 3 < unfiltered
    assert any("smoothed" in remark for remark in output.remarks)
    with pytest.raises(UnsuitableSeries, match="KERNEL"):
        analyse(sharp, sharp_kernels="refuse")


def test_what_limits_the_numbers_is_said_and_a_reference_is_shown_only_if_they_are_comparable():
    made = phantom(2, 0.15, size=192)
    plain = analyse(volume_of(made, replace(SOFT, slice_thickness_mm=2.5)), reference=(HEALTHY,))
    assert plain.remarks == ()
    assert any("92 healthy people" in line.text and "2.7" in line.text for line in plain.lines)
    odd = replace(SOFT, slice_thickness_mm=5.0, contrast=True, kernel="?")
    limited = analyse(volume_of(made, odd), reference=(HEALTHY,))
    for word in ("Slices of 5 mm", "Contrast medium", "how sharp the kernel"):
        assert any(word in remark for remark in limited.remarks)
    assert not any("healthy" in line.text for line in limited.lines)
    assert {line.text for line in limited.lines if line.tone == "caution"} == set(limited.remarks)


def test_air_in_the_windpipe_that_is_not_air_and_small_lungs_are_remarked():
    made = phantom(2, 0.15, size=192)
    assert any(check.code == "WINDPIPE_AIR" and " -9" in check.sentence for check in analyse(volume_of(made)).checks)
    shifted = replace(made, hu=np.clip(made.hu + 35, -1024, 3071).astype(np.int16))
    assert any("windpipe measures -9" in remark for remark in analyse(volume_of(shifted)).remarks)
    assert any("inflated" in remark for remark in analyse(volume_of(made), inspired_ml=9000.0).remarks)


@pytest.mark.parametrize("noise_hu", [5.0, 12.0, 30.0])
def test_noise_is_measured_between_the_vessels_and_within_the_lung(noise_hu):
    shape, spacing = (30, 90, 120), (2.0, 0.8, 0.8)
    hu = np.random.default_rng(3).normal(-860, noise_hu, shape)
    hu[:, ::15] = 40  # vessels
    inside = np.zeros(shape, bool)
    inside[:, 5:85, 5:115] = True
    hu[~inside] = np.random.default_rng(4).normal(0, 90, shape)[~inside]
    whole = np.rint(hu).astype(np.int16)
    lungs = Lungs(inside, ~inside & False, inside & (whole < -400), (slice(0, 30), slice(0, 90), slice(0, 120)), 0.0)
    assert noise_in(whole, lungs, spacing) == pytest.approx(noise_hu, rel=0.06, abs=0.6)
    assert noise_in(whole, replace(lungs, parenchyma=inside & False), spacing) is None


def test_a_noisy_scan_is_remarked_with_its_noise():
    quiet, noisy = (analyse(volume_of(phantom(2, 0.15, noise_hu, size=192))) for noise_hu in (10.0, 18.0))
    assert not any("vary by" in remark for remark in quiet.remarks)
    assert any("Small areas of the lungs vary by" in check.sentence for check in quiet.checks)
    (remark,) = [remark for remark in noisy.remarks if "vary by" in remark]
    assert "Above 15 HU" in remark and 15 < int(remark.split("vary by ")[1].split()[0]) < 24
    assert value(noisy, codes.LAA_PERCENT) > value(quiet, codes.LAA_PERCENT) + 0.2


def test_images_stored_mirrored_give_the_same_numbers_and_segments_on_their_own_grid():
    made = phantom(2, 0.3, side=-1)
    straight = volume_of(made)
    affine = np.diag([-1.0, 1, 1, 1]) @ straight.affine
    mirrored = replace(straight, hu=np.ascontiguousarray(made.hu[:, :, ::-1]), affine=affine)
    assert upright(mirrored) is not mirrored
    one, other = analyse(straight), analyse(mirrored)
    assert [item.value for item in one.measurements] == [item.value for item in other.measurements]
    for first, second in zip(one.segments, other.segments, strict=True):
        assert np.array_equal(first.mask, second.mask[:, :, ::-1])


def test_every_number_is_coded_with_its_place():
    output = analyse(volume_of(phantom(2, 0.15)))
    assert len(output.measurements) == 6 * 4 + 1
    low_ml = next(item.value for item in output.measurements if item.segment == "Low attenuation")
    assert low_ml == pytest.approx(output.segments[2].mask.sum() * volume_of(phantom(2, 0.15)).voxel_ml)
    low = next(item for item in output.measurements if item.concept == codes.LAA_PERCENT)
    assert [(q.concept.value, q.value) for q in low.qualifiers] == [("112032", -950)]
    mean = next(item for item in output.measurements if item.concept == codes.ATTENUATION)
    assert mean.derivation == codes.MEAN and mean.unit.value == "[hnsf'U]"
    assert sum(output.histogram.counts) > 80
    assert not output.findings
    for item in output.measurements:
        for code in (item.concept, item.unit, item.site, item.laterality, item.topography, item.derivation):
            if code:
                require_known(code)


def test_all_that_the_page_shows_passes_the_border_of_a_third_party_s_process():
    volume = volume_of(phantom(2, 0.15))
    output = analyse(volume)
    told = decode_output(b"".join(encode_output(output)), volume, 1 << 30)
    assert (told.table, told.histogram, told.lines) == (output.table, output.histogram, output.lines)
    assert [one.drawn for one in told.segments] == ["outline", "outline", "area"]


def test_what_one_model_learnt_of_a_volume_serves_the_next_and_goes_with_the_volume():
    volume = volume_of(phantom(2, 0.15))
    assert air_in(volume) is air_in(volume)
    other = replace(volume)
    assert air_in(other) is not air_in(volume)
    gone = weakref.ref(air_in(volume))
    del volume
    gc.collect()
    assert gone() is None


def test_settings_name_what_is_wrong_with_a_card():
    with pytest.raises(ModelError, match=r"\[densitometry\].threshold"):
        Settings.from_table({"threshold": -950})
    with pytest.raises(ModelError, match="a reference needs both"):
        Settings.from_table({"reference": [{**vars(HEALTHY), "source": ""}]})


def test_the_shipped_card_is_loaded_by_the_plug_and_names_every_code_that_is_used():
    folder = shipped_folder() / "densitometry"
    card = read_card(folder)
    model = plug_of(find_kind(card.kind)).load(folder, card, DeviceChoice())
    output = model.analyse(volume_of(phantom(2, 0.15, size=256)))
    named = {(code.value, code.scheme) for code in card.codes}
    assert {(item.concept.value, item.concept.scheme) for item in output.measurements} <= named
    assert (codes.LOW_ATTENUATION.value, codes.LOW_ATTENUATION.scheme) in named
    assert card.verified and not card.weight_files()


def examination(day: date, shift: float, volume_ml: float, **scan: object) -> Examination:
    place = {"site": codes.LUNG, "laterality": codes.LATERALITY["both"]}
    measured = (
        Measurement(codes.LAA_PERCENT, 10.0 + shift, codes.PERCENT, decimals=1, **place),
        Measurement(codes.ATTENUATION, -850.0 - shift, codes.HOUNSFIELD, derivation=codes.MEAN, **place),
        Measurement(codes.VOLUME, volume_ml, codes.MILLILITRE, decimals=0, **place),
    )
    return Examination(day, measured, Scan(**{"kernel": "B30f", "thickness_mm": 1.0, **scan}), "densitometry 1.0")


def test_a_change_since_an_earlier_result_is_stated_with_what_may_explain_it():
    before = examination(date(2025, 1, 1), 0.0, 5000)
    same = in_words(examination(date(2026, 1, 1), 2.5, 5100), before)
    assert len(same) == 1
    assert "Since 2025-01-01 (365 days)" in same[0]
    assert "low attenuation 10.0 to 12.5 (+2.5 percentage points)" in same[0]
    other = in_words(examination(date(2026, 1, 1), 2.5, 4000, kernel="B70f", contrast=True), before)
    assert "kernel, contrast medium" in other[1]
    assert "-20%" in other[2]


def test_only_what_was_measured_the_same_way_is_compared():
    before, now = examination(date(2025, 1, 1), 0.0, 5000), examination(date(2026, 1, 1), 1.0, 5000)
    moved = tuple(replace(item, laterality=codes.LATERALITY["left"]) for item in before.measurements)
    assert len(changes(now.measurements, before.measurements)) == 3
    assert changes(now.measurements, moved) == ()
    assert in_words(now, replace(before, measurements=moved)) == ()


SCANS = ("MD04_every2nd", "MD05_every2nd", "cip_ct64_79slices", "lungdx_A0002_B40f_30slices")


@pytest.mark.shared
@pytest.mark.parametrize("name", SCANS)
def test_simpleitk_finds_the_same_numbers_with_the_same_mask(shared, name):
    volume = upright(load_scan(scans_in(shared / "data" / "dicom" / name)[0]))
    lungs = lungs_of(volume)
    found = measure(volume.hu, lungs, volume.voxel_ml).parts
    image = sitk.GetImageFromArray(volume.hu[lungs.box])
    image.SetSpacing(volume.spacing_mm[::-1])
    sides = {"both": lungs.both, "right": lungs.right, "left": lungs.left}
    for side in sides if volume.hu.size < 1e6 else ("both",):
        whole = sides[side]
        expected = by_simpleitk(image, whole[lungs.box], (whole & lungs.parenchyma)[lungs.box])
        density = found[Part(side)]
        numbers = (density.volume_ml, density.laa_percent, density.perc15_hu, density.mean_hu)
        assert numbers == pytest.approx(expected, abs=1e-6)
    for part, expected_of in parts_by_simpleitk(image, lungs).items():
        density = found[part]
        assert (density.volume_ml, density.laa_percent, density.mean_hu) == pytest.approx(expected_of, abs=1e-6)


def parts_by_simpleitk(image: sitk.Image, lungs: Lungs) -> dict[Part, tuple[float, float, float]]:
    """Volume, share below -950 HU and mean of each lung, each third of both, and each lung's thirds."""
    right, left, inside = (one[lungs.box] for one in (lungs.right, lungs.left, lungs.parenchyma))
    levels = np.flatnonzero((right | left).any(axis=(1, 2)))
    height = levels[-1] - levels[0] + 1
    # The middle of a slice decides which third it belongs to.
    third = np.clip(((np.arange(len(right)) - levels[0] + 0.5) * 3 // height).astype(int), 0, 2)
    labels = (np.where(right, 1, 0) + np.where(left, 4, 0) + (right | left) * third[:, None, None]).astype(np.uint8)
    counted, measured, low = (sitk.LabelStatisticsImageFilter() for _ in range(3))
    on_grid = [sitk.GetImageFromArray(one) for one in (labels, labels * inside)]
    for one in on_grid:
        one.CopyInformation(image)
    counted.Execute(image, on_grid[0])
    measured.Execute(image, on_grid[1])
    low.Execute(sitk.Cast(image < -950, sitk.sitkFloat64), on_grid[1])
    voxel_ml = float(np.prod(image.GetSpacing())) / 1000
    found = {}
    names = ("lower", "middle", "upper")
    for side, first in (("right", (1,)), ("left", (4,)), ("both", (1, 4))):
        for which, heights in {"whole": (0, 1, 2), **{name: (n,) for n, name in enumerate(names)}}.items():
            parts = [start + n for start in first for n in heights if counted.HasLabel(start + n)]
            voxels = sum(measured.GetCount(n) for n in parts)
            share, mean = (sum(one.GetSum(n) for n in parts) / voxels for one in (low, measured))
            volume_ml = voxel_ml * sum(counted.GetCount(n) for n in parts)
            found[Part(side, which)] = (volume_ml, 100 * share, mean)
    return found


def by_simpleitk(image: sitk.Image, whole: np.ndarray, parenchyma: np.ndarray) -> tuple[float, float, float, float]:
    """Volume, share below -950 HU, Perc15 and mean; Perc15 by counting voxels below one threshold after the other."""

    def on_grid(mask: np.ndarray) -> sitk.Image:
        made = sitk.GetImageFromArray(mask.astype(np.uint8))
        made.CopyInformation(image)
        return made

    def below(hu: int) -> int:
        counted = sitk.StatisticsImageFilter()
        counted.Execute(sitk.And(lung, image < hu))
        return round(counted.GetSum())

    lung, shape, grey = on_grid(parenchyma), sitk.LabelShapeStatisticsImageFilter(), sitk.LabelStatisticsImageFilter()
    shape.Execute(on_grid(whole))
    grey.Execute(image, lung)
    wanted, hu = 0.15 * grey.GetCount(1), -1000
    step = 64
    while step:  # the highest HU with fewer than 15% below it
        hu, step = (hu + step, step) if below(hu + step) < wanted else (hu, step // 2)
    perc15 = hu - 0.5 + (wanted - below(hu)) / (below(hu + 1) - below(hu))
    return shape.GetPhysicalSize(1) / 1000, 100 * below(-950) / grey.GetCount(1), perc15, grey.GetMean(1)


@pytest.mark.shared
def test_the_mask_agrees_with_the_reference_masks_of_a_real_scan(shared):
    volume = upright(load_scan(scans_in(shared / "data" / "dicom" / "cip_ct64_79slices")[0]))
    lungs = lungs_of(volume)
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(shared / "data" / "masks" / "wholeLung-64.nrrd")))
    # Regions of the chest: 9 to 11 are thirds of the left lung, 12 to 14 of the right.
    regions = sitk.GetArrayFromImage(sitk.ReadImage(str(shared / "data" / "masks" / "lm-64.nrrd"))) & 255
    assert dice(lungs.both, reference > 0) >= 0.95
    assert dice(lungs.both, regions > 0) >= 0.95
    assert dice(lungs.right, (regions >= 12) & (regions <= 14)) >= 0.95
    assert dice(lungs.left, (regions >= 9) & (regions <= 11)) >= 0.95
