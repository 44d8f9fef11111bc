"""A lung densitometry under other conditions than a plain axial scan: the same numbers, or a remark, or a reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from inference.densitometry import codes
from inference.densitometry.model import Densitometry
from inference.densitometry.settings import Settings
from inference.errors import UnsuitableSeries
from inference.evaluation.overlap import dice
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.emphysema import EmphysemaSettings
from inference.phantom.series import write_series
from inference.plug import Output
from inference.suitability.policy import Policy
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice
from inference.volume.load import load

MODEL = Densitometry(Settings(), Policy(matrix=(64, 2048), pixel_mm=(0.2, 5.0)))
Change = Callable[[Dataset], None]


@pytest.fixture(scope="module")
def scan() -> Phantom:
    scanner = Scanner(noise_hu=10.0, kernel="B30f")
    return make_phantom(2, slices=32, size=128, scanner=scanner, emphysema=EmphysemaSettings(0.15))


@pytest.fixture(scope="module")
def series(scan: Phantom, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_series(scan, tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def plain(series: list[Path]) -> Output:
    return MODEL.analyse(load(series))


def changed(series: list[Path], folder: Path, change: Change) -> list[Path]:
    """A copy of the series, each of its images changed."""
    paths = []
    for path in series:
        dataset = dcmread(path)
        change(dataset)
        dataset.save_as(folder / path.name)
        paths.append(folder / path.name)
    return paths


def stored(dataset: Dataset, values: np.ndarray) -> None:
    dataset.PixelData = np.ascontiguousarray(values).astype(np.uint16).tobytes()


def numbers(output: Output) -> list[float]:
    return [one.value for one in output.measurements]


def share(output: Output) -> float:
    both = codes.LATERALITY["both"]
    return next(one.value for one in output.measurements if one.concept == codes.LAA_PERCENT and one.laterality == both)


def feet_first(dataset: Dataset) -> None:
    """Rows to the patient's right, as a scanner stores a patient that lies feet first; the same patient."""
    values = dataset.pixel_array[:, ::-1]
    x, y, z = map(float, dataset.ImagePositionPatient)
    dataset.ImagePositionPatient = [round(x + (values.shape[1] - 1) * float(dataset.PixelSpacing[1]), 4), y, z]
    dataset.ImageOrientationPatient, dataset.PatientPosition = [-1, 0, 0, 0, 1, 0], "FFS"
    stored(dataset, values)


def other_offset(dataset: Dataset) -> None:
    stored(dataset, dataset.pixel_array + 7168)
    dataset.RescaleIntercept = -8192


def half_steps(dataset: Dataset) -> None:
    """Two stored values for each HU."""
    stored(dataset, 2 * dataset.pixel_array)
    dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, -1024


def padded(dataset: Dataset) -> None:
    """Outside the circle of reconstruction lies a padding of -2000 HU instead of air."""
    values = dataset.pixel_array.astype(np.int32)
    rows, columns = np.indices(values.shape)
    outside = np.hypot(rows - 63.5, columns - 63.5) > 64
    stored(dataset, np.where(outside, 0, values + 976))
    dataset.RescaleIntercept = -2000
    dataset.add_new(0x00280120, "US", 0)  # Pixel Padding Value


@pytest.mark.parametrize("change", [feet_first, other_offset, half_steps, padded])
def test_how_the_scan_is_stored_changes_no_number(
    series: list[Path], plain: Output, tmp_path: Path, change: Change
) -> None:
    output = MODEL.analyse(load(changed(series, tmp_path, change)))
    assert numbers(output) == pytest.approx(numbers(plain), abs=1e-9)
    assert output.remarks == plain.remarks


def with_contrast(dataset: Dataset) -> None:
    dataset.ContrastBolusAgent = "Iomeprol"


def sharp(dataset: Dataset) -> None:
    dataset.ConvolutionKernel = "B70f"


@pytest.mark.parametrize(
    ("change", "word"), [(with_contrast, "Contrast medium"), (sharp, "The kernel is sharp. The lungs were smoothed")]
)
def test_what_makes_numbers_not_comparable_is_said(
    series: list[Path], plain: Output, tmp_path: Path, change: Change, word: str
) -> None:
    output = MODEL.analyse(load(changed(series, tmp_path, change)))
    (remark,) = [remark for remark in output.remarks if word in remark]
    assert "not comparable with published ones" in remark and not any(word in one for one in plain.remarks)
    assert share(output) == pytest.approx(share(plain), abs=0.0 if change is with_contrast else 1.0)


def tilted(dataset: Dataset) -> None:
    dataset.GantryDetectorTilt = 12.0


def oblique(dataset: Dataset) -> None:
    """Slices across the body's axis by 15 degrees, each shifted along their own normal."""
    sine, cosine = float(np.sin(np.radians(15))), float(np.cos(np.radians(15)))
    x, y, z = map(float, dataset.ImagePositionPatient)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, round(cosine, 6), round(sine, 6)]
    dataset.ImagePositionPatient = [x, round(y - z * sine, 4), round(z * cosine, 4)]


def leaning(dataset: Dataset) -> None:
    """A stack that leans, as with a tilted gantry, without a word of it in the header."""
    x, y, z = map(float, dataset.ImagePositionPatient)
    dataset.ImagePositionPatient = [x, round(y + 0.2 * z, 4), z]


@pytest.mark.parametrize(
    ("change", "code"), [(tilted, "GANTRY_TILT"), (oblique, "NOT_AXIAL"), (leaning, "GANTRY_TILT")]
)
def test_slices_that_are_not_axial_are_refused(series: list[Path], tmp_path: Path, change: Change, code: str) -> None:
    with pytest.raises(UnsuitableSeries, match=code):
        MODEL.analyse(load(changed(series, tmp_path, change)))


def volume_of(hu: np.ndarray, spacing_mm: tuple[float, float, float], thickness_mm: float) -> CTVolume:
    slices = tuple(SourceSlice(Path("x"), str(z), "1.2", 0, (0, 0, 0)) for z in range(len(hu)))
    header = SeriesHeader(modality="CT", kernel="B30f", age_years=60, slice_thickness_mm=thickness_mm)
    return CTVolume(hu, spacing_mm, np.diag([*spacing_mm[::-1], 1.0]), slices, "1.2.3", "1.2.4", header)


def test_pixels_that_are_not_square_give_the_share_of_what_is_there() -> None:
    scanner, emphysema = Scanner(noise_hu=10.0, kernel="B30f"), EmphysemaSettings(0.15)
    made = make_phantom(2, slices=32, size=256, scanner=scanner, emphysema=emphysema)
    assert made.emphysema is not None
    hu, lungs, low = (np.ascontiguousarray(one[:, :, ::2]) for one in (made.hu, made.lung_mask, made.emphysema.low))
    z, y, x = made.spacing_mm
    output = MODEL.analyse(volume_of(hu, (z, y, 2 * x), z))
    assert dice(output.segments[0].mask | output.segments[1].mask, lungs) > 0.98
    parenchyma = lungs & (hu < -400)
    known = 100 * np.count_nonzero(low & parenchyma) / np.count_nonzero(parenchyma)
    assert share(output) == pytest.approx(known, abs=0.2)


def test_slices_of_5_mm_are_remarked_and_show_less_low_attenuation(tmp_path: Path) -> None:
    """Two thin slices averaged: small clusters are half lung in them."""
    thin = make_phantom(
        2, slices=96, size=128, scanner=Scanner(noise_hu=10.0, kernel="B30f"), emphysema=EmphysemaSettings(0.15)
    )
    z, y, x = thin.spacing_mm
    assert z == pytest.approx(2.5, abs=0.1)
    thick = np.rint((thin.hu[::2].astype(np.float32) + thin.hu[1::2]) / 2).astype(np.int16)
    fine = MODEL.analyse(volume_of(thin.hu, thin.spacing_mm, 2.5))
    coarse = MODEL.analyse(volume_of(thick, (2 * z, y, x), 5.0))
    assert any("Slices of 5 mm, more than 2.5 mm" in remark for remark in coarse.remarks)
    assert not any("more than 2.5 mm" in remark for remark in fine.remarks)
    assert share(fine) - 3 < share(coarse) < share(fine)
