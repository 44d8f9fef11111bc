"""The summary image shows the patient as a radiologist expects, with the result and where it came from."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from config.headers import quiet
from dicom_node.report import page
from dicom_node.report.context import EarlierResult, ReportContext, StudyStatement
from dicom_node.report.fonts import bundled, font_for, showable_name
from dicom_node.report.frame import Origin, to_part10
from dicom_node.report.objects import build_all
from dicom_node.report.planes import LUNG_COLOUR, REGION_COLOUR, anatomy_of, axial, box_of, coronal, lung_box, sagittal
from dicom_node.report.sources import read_sources
from dicom_node.report.summary import build_summary
from dicom_node.report.typesetting import LEFT_OUT, MOST_CHARACTERS, Box, fitted
from inference.finding import QualityCheck, Spread
from inference.models.cards import OperatingPoint
from inference.volume.ct_volume import CTVolume
from tests.factories import Grid, finding_on, lesion, lungs, model, verdict_on, volume_of, write_enhanced, write_series
from tests.validators import rows

CONTEXT = ReportContext(created_at=datetime(2026, 3, 1, 12, tzinfo=UTC))
ORIENTATIONS = {
    "usual": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "rows reversed": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "rotated": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn from here on."""
    texts: list[str] = []
    original = ImageDraw.ImageDraw.text

    def record(self: ImageDraw.ImageDraw, at: object, text: str, *args: object, **kwargs: object) -> None:
        texts.append(text)
        original(self, at, text, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


def summary_of(volume: CTVolume, context: ReportContext = CONTEXT, **changes: object) -> Dataset:
    """The Secondary Capture as a reader of the file gets it."""
    built = build_summary(finding_on(volume, **changes), volume, read_sources(volume), context)
    return pydicom.dcmread(DicomBytesIO(to_part10(built)))


def corner_volume(folder: Path, orientation: tuple[float, ...]) -> tuple[CTVolume, npt.NDArray[np.bool_]]:
    """A volume whose only dense voxels lie in the head, back, left corner, and the mask of all its voxels."""
    grid = Grid(shape=(8, 24, 24), spacing_mm=(3.0, 2.0, 2.0), orientation=orientation)
    write_series(folder, grid)
    volume = volume_of(folder)
    z, y, x = np.indices(grid.shape)
    places = np.einsum("ij,jzyx->izyx", volume.affine, np.stack([x, y, z, np.ones_like(x)]))[:3]
    middle = [(axis.min() + axis.max()) / 2 for axis in places]
    corner = (places[0] > middle[0]) & (places[1] > middle[1]) & (places[2] > middle[2])
    hu = np.where(corner, 1000, -1350).astype(np.int16)
    return replace(volume, hu=hu), np.ones(grid.shape, bool)


def bright_quarter(image: Image.Image) -> tuple[str, str]:
    """Which quarter of the image is bright: ("top" or "bottom", "left" or "right")."""
    grey = np.asarray(image.convert("L"), dtype=float)
    height, width = (side // 2 for side in grey.shape)
    top = grey[: height - 2].mean() > grey[height + 2 :].mean()
    left = grey[:, : width - 2].mean() > grey[:, width + 2 :].mean()
    return "top" if top else "bottom", "left" if left else "right"


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_planes_are_shown_the_same_way_whatever_the_source_s_orientation(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    volume, mask = corner_volume(tmp_path / "s", orientation)
    anatomy = anatomy_of(finding_on(volume, lung_mask=mask), volume)
    box = lung_box(anatomy)
    count, rows, columns = anatomy.hu.shape
    size = (120, 120)
    # The bright corner is towards the head, the back and the patient's left.
    assert bright_quarter(axial(anatomy, count - 1, box, size)) == ("bottom", "right")
    assert bright_quarter(coronal(anatomy, rows - 1, box, size)) == ("top", "right")
    assert bright_quarter(sagittal(anatomy, columns - 1, box, size)) == ("top", "right")


def test_planes_keep_the_proportions_of_the_patient(tmp_path: Path) -> None:
    grid = Grid(shape=(10, 30, 20), spacing_mm=(6.0, 2.0, 1.0))
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    anatomy = anatomy_of(finding_on(volume, lung_mask=np.ones(grid.shape, bool)), volume)
    box = lung_box(anatomy)
    # 60 mm high, 60 mm deep, 20 mm wide.
    assert axial(anatomy, 5, box, (600, 120)).size == (40, 120)
    assert coronal(anatomy, 5, box, (600, 120)).size == (40, 120)
    assert sagittal(anatomy, 5, box, (600, 120)).size == (120, 120)


def test_planes_go_through_the_hottest_voxel_of_the_region(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    heat = np.zeros(grid.shape, np.uint8)
    heat[5, 13, 9] = 230
    heat[1, 1, 1] = 255  # outside the region
    finding = finding_on(volume, localisation=lesion(grid), heat=heat)
    assert anatomy_of(finding, volume).focus == (5, 13, 9)


@pytest.mark.parametrize("seed", range(16))
def test_planes_go_through_the_voxel_that_a_look_at_every_voxel_finds(tmp_path: Path, seed: int) -> None:
    write_series(tmp_path / "s")
    volume, rng = volume_of(tmp_path / "s"), np.random.default_rng(seed)
    shape = volume.hu.shape
    lung, region = some_of(shape, rng), some_of(shape, rng)
    heat = rng.integers(0, 4, shape, np.uint8) if seed % 2 else None
    hot = np.zeros(shape, bool) if heat is None else lung & (heat == heat.max())
    found = anatomy_of(finding_on(volume, lung_mask=lung, heat=heat), volume)
    assert found.focus == (middle(np.argwhere(hot)) if hot.any() else middle(larger_side(np.argwhere(lung))))
    hot = region if heat is None else region & (heat == heat[region].max())
    found = anatomy_of(finding_on(volume, lung_mask=lung, localisation=region, heat=heat), volume)
    assert found.focus == middle(np.argwhere(hot))
    reach = [np.flatnonzero(lung.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    assert box_of(lung) == tuple(slice(at[0], at[-1] + 1) for at in reach)


def some_of(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A mask with voxels anywhere in a random part of a volume, at least one."""
    low = [int(rng.integers(0, size // 2)) for size in shape]
    part = tuple(slice(at, at + 2 + int(rng.integers(0, size // 2))) for at, size in zip(low, shape, strict=True))
    mask = np.zeros(shape, bool)
    mask[part] = rng.random(mask[part].shape) < 0.3
    mask[tuple(low)] = True
    return mask


def larger_side(voxels: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    low = voxels[:, 2] <= voxels[:, 2].mean()
    return voxels[low if low.mean() >= 0.5 else ~low]


def middle(voxels: npt.NDArray[np.intp]) -> tuple[int, ...]:
    return tuple(map(int, voxels[np.abs(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()]))


def test_nothing_has_an_empty_box() -> None:
    assert np.zeros((3, 4, 5), bool)[box_of(np.zeros((3, 4, 5), bool))].size == 0


def test_outlines_of_lungs_and_region_are_drawn(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    pixels = summary_of(volume, lung_mask=lungs(grid), localisation=lesion(grid)).pixel_array.reshape(-1, 3)
    colours = {tuple(int(v) for v in colour) for colour in np.unique(pixels, axis=0)}
    assert {LUNG_COLOUR, REGION_COLOUR} <= colours


def test_image_is_a_1024_by_768_rgb_secondary_capture(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    capture = summary_of(volume_of(tmp_path / "s"))
    assert capture.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert capture.pixel_array.shape == (768, 1024, 3)
    assert (capture.PhotometricInterpretation, capture.BurnedInAnnotation) == ("RGB", "YES")
    assert (capture.SeriesNumber, capture.Modality, capture.BodyPartExamined) == (9004, "OT", "CHEST")
    assert capture.SeriesDescription == "COVID-19 CT AI summary, RESEARCH, not for diagnosis"


def test_page_says_the_result_its_meaning_and_what_it_rests_on(tmp_path: Path, drawn: list[str]) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    context = replace(
        CONTEXT,
        operating_points=(OperatingPoint("published", 0.5, 0.84, 0.982, "131 test cases"),),
        software_version="0.1.0",
        revision=2,
    )
    checks = (QualityCheck("SLICE_SPACING", "Even."), QualityCheck("LUNG_VOLUME", "Plausible."))
    summary_of(volume_of(tmp_path / "s"), context, localisation=lesion(grid), checks=checks)
    text = " ".join(drawn)
    for words in (
        "Doe Jane",
        "ID 4711",
        "born 1960-02-29",
        "Study 2020-03-01",
        "RESEARCH USE ONLY  -  NOT FOR DIAGNOSIS",
        "91 %",
        "POSITIVE: at or above threshold 50 %",
        "sensitivity 0.840, specificity 0.982",
        "Lungs 26 mL (right 15, left 11)",
        "Not a lesion boundary",
        "8 slices, 32 mm, spacing 4 mm",
        "slice spacing, lung volume",
        "covid-ct 1.0",
        "a1a1a1a1 / b2b2b2b2",
        "2026-03-01 12:00 UTC+00:00, revision 2",
        "kernel not stated, slice thickness 4 mm.",
        "image 5",
    ):
        assert words in text, words
    assert "DEMONSTRATION" not in text


def test_page_shows_the_study_s_other_result_and_an_uncertain_sign(tmp_path: Path, drawn: list[str]) -> None:
    write_series(tmp_path / "s")
    earlier = EarlierResult("1.2.3.4", "3", "Thorax B30f", 0.33, 0.5)
    context = replace(CONTEXT, study=StudyStatement((earlier,), "1.2.3.4", "its kernel is made for lungs"))
    spread = Spread(0.44, 0.86, ("one row higher", "one row lower"))
    summary_of(volume_of(tmp_path / "s"), context, probability=0.79, spread=spread)
    text = " ".join(drawn)
    for words in (
        'series 3 "Thorax B30f", reported before: 33 %, negative; this series: 79 %, positive. THEY DIFFER',
        'rests on series 3 "Thorax B30f" (negative), because its kernel is made for lungs.',
        "The sign is uncertain: harmless changes of the input move the output from 44 to 86 %",
    ):
        assert words in text, words


def test_negative_and_demonstration_are_said_on_the_page(tmp_path: Path, drawn: list[str]) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    summary_of(volume, probability=0.4999, model=model(demonstration=True, verified=False))
    text = " ".join(drawn)
    assert "49.99 %" in text and "NEGATIVE: below threshold 50 %" in text
    assert "DEMONSTRATION MODEL, TRAINED ON PHANTOMS  -  RESEARCH USE ONLY" in text
    assert "(not verified)" in text and "no region: planes through the middle of the lungs" in text


def test_why_nothing_is_localised_is_said_in_report_and_on_the_page(tmp_path: Path, drawn: list[str]) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    nothing = np.zeros(volume.hu.shape, bool)
    cold, elsewhere = np.zeros(volume.hu.shape, np.uint8), np.zeros(volume.hu.shape, np.uint8)
    elsewhere[2, 1, 1] = 255
    inside = np.where(verdict_on(volume).lung_mask, elsewhere.max(), 0).astype(np.uint8)
    for probability, heat, said, legend in (
        (0.2, cold, "No region is marked when the result is negative.", "planes through the middle of the lungs"),
        (0.9, elsewhere, "doubt the result", "hottest outside the lungs: planes through their middle"),
        (0.9, inside, "doubt the result", "planes through the hottest point"),
    ):
        drawn.clear()
        finding = finding_on(volume, probability, localisation=nothing, heat=heat)
        objects = dict(build_all(finding, volume, read_sources(volume), CONTEXT))
        assert said in " ".join(value for _, _, kind, _, value in rows(objects["report"]) if kind == "TEXT")
        assert said in " ".join(drawn) and legend in " ".join(drawn)
        assert len(objects["segmentation"].SegmentSequence) == 1


def test_slices_that_the_output_rests_on_are_named_where_they_are_not_all(tmp_path: Path, drawn: list[str]) -> None:
    write_series(tmp_path / "s", order=[7, 6, 5, 4, 3, 2, 1, 0])
    volume = volume_of(tmp_path / "s")
    for chosen, said in (((2, 5), "rests on 4 of 8 slices, from image 6 up to image 3"), ((0, 7), ""), (None, "")):
        drawn.clear()
        objects = dict(build_all(finding_on(volume, verdict_slices=chosen), volume, read_sources(volume), CONTEXT))
        for text in (" ".join(drawn), " ".join(row[4] for row in rows(objects["report"]))):
            assert (said in text) if said else ("rests on" not in text)


def test_slices_that_did_not_count_are_marked_in_the_strip(tmp_path: Path, drawn: list[str]) -> None:
    grid = Grid(shape=(20, 32, 40))
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    pages = {}
    for counted in (None, (10, 19)):
        drawn.clear()
        pages[counted] = summary_of(volume, lung_mask=lungs(grid), verdict_slices=counted).pixel_array[520:].astype(int)
        strip = drawn[drawn.index("lungs as found by the U-Net") :]
        marked = [int(strip[at + 1].split()[1]) for at, words in enumerate(strip) if words == "not counted"]
        assert marked == ([] if counted is None else [number for number in marked if number <= 10])
        assert counted is None or len(marked) == 5
    # The lower row of the strip, which shows the base, is darker.
    assert pages[(10, 19)][125:].sum() < pages[None][125:].sum()


def test_share_of_the_lungs_is_in_whole_percent(tmp_path: Path, drawn: list[str]) -> None:
    write_series(tmp_path / "s")
    summary_of(volume_of(tmp_path / "s"), lung_mask=lungs(Grid()), localisation=lesion(Grid()))
    share = 100 * lesion(Grid()).sum() / lungs(Grid()).sum()
    assert f"{share:.0f} % of the lungs" in " ".join(drawn)


@pytest.mark.parametrize("length", [1_000, 1_000_000])
@pytest.mark.parametrize("words", ["W", "W ", "张", "é"])
def test_text_of_any_length_is_clipped_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, length: int
) -> None:
    write_series(tmp_path / "s", Grid(shape=(4, 16, 16)))
    volume = volume_of(tmp_path / "s")
    measured: list[int] = []
    original = ImageDraw.ImageDraw.textlength

    def measure(self: ImageDraw.ImageDraw, text: str, *args: object, **kwargs: object) -> float:
        measured.append(len(text))
        return original(self, text, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "textlength", measure)
    long = words * (length // len(words))
    point = OperatingPoint(long, 0.5, 0.8, 0.9, long)
    context = replace(CONTEXT, operating_points=(point,), software_version=long, device_name=long)
    finding = finding_on(volume, checks=(QualityCheck(long, long),), model=model(name=long, version=long))
    first = read_sources(volume)[0]
    origin = Origin([first], context, finding.model)
    with quiet():
        first.PatientName = first.PatientID = first.StudyDate = first.SeriesDescription = long
        page.draw_page(finding, volume, anatomy_of(finding, volume), origin)
    assert max(measured) <= MOST_CHARACTERS + 3
    assert len(measured) < 50_000


def test_heat_is_drawn_where_it_is(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    heat = np.zeros(grid.shape, np.uint8)
    heat[4:6, 10:16, 6:14] = 255
    hot, plain = (anatomy_of(finding_on(volume, heat=h), volume) for h in (heat, None))
    whole = tuple(slice(size) for size in hot.hu.shape)
    before, after = (np.asarray(axial(a, 4, whole, (60, 64)), int) for a in (plain, hot))  # type: ignore[arg-type]
    warmer = (after - before)[..., 0] > 60
    rows_, columns = np.nonzero(warmer)
    # Pixels are 1.5 mm of the image's 1 mm across and 2 mm down.
    assert (rows_.min() // 2, rows_.max() // 2) == (10, 15) and (columns.min() // 1.5, columns.max() // 1.5) == (6, 13)


def test_a_crowded_page_is_set_smaller_and_keeps_every_word(tmp_path: Path, drawn: list[str]) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    checks = tuple(QualityCheck(f"CHECK_NUMBER_{n}_OF_MANY", "") for n in range(20))
    point = OperatingPoint("published", 0.5, 0.84, 0.982, "one hundred and thirty-one published test cases " * 2)
    context = replace(CONTEXT, operating_points=(point,), prevalence=0.1)
    summary_of(volume_of(tmp_path / "s"), context, localisation=lesion(grid), checks=checks)
    text = " ".join(drawn)
    assert "check number 19 of many" in text and "revision 1" in text and "negative predictive" in text


def test_a_page_that_cannot_hold_all_says_so() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (300, 200)))
    many = [(f"remark number {n}", 14, (255, 255, 255)) for n in range(40)]
    said = [line for _, line, _, _ in fitted(draw, Box(0, 0, 300, 200), many)]
    assert said[0] == "remark number 0" and said[-1] == LEFT_OUT
    assert fitted(draw, Box(0, 0, 300, 200), many[:3])[-1][1] == "remark number 2"


@pytest.mark.parametrize(
    "name",
    ["Zhang^San=张^三", "张^三", "=张^三", "Müller^Jörg", "", "A" * 300, "Ψευδός^Όνομα", "عمر^x", "\U0001f600^x"],
)
def test_no_name_breaks_the_page(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "s", SpecificCharacterSet="ISO_IR 192", PatientName=name[:64])
    assert summary_of(volume_of(tmp_path / "s")).pixel_array.any()


def test_name_without_glyphs_is_shown_in_latin_letters_or_left_to_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.report.fonts._SYSTEM_FONTS", ())
    assert showable_name("Zhang^San=张^三", 20)[0] == "Zhang San"
    assert showable_name("张^三", 20)[0] == "(see header)"
    assert showable_name("Müller^Jörg", 20)[0] == "Muller Jorg"
    assert showable_name("", 20)[0] == "no name"
    assert font_for("张", 20) is None


def test_no_text_leaves_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "s", PatientName="M" * 60, PatientID="W" * 64)
    outside: list[str] = []
    original = ImageDraw.ImageDraw.text

    def check(self: ImageDraw.ImageDraw, at: tuple[int, int], text: str, **kwargs: object) -> None:
        box = self.textbbox(at, text, font=kwargs["font"], anchor=kwargs.get("anchor"))  # type: ignore[arg-type]
        if min(box[:2]) < 0 or box[2] > page.SIZE_PX[0] or box[3] > page.SIZE_PX[1]:
            outside.append(text)
        original(self, at, text, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", check)
    summary_of(volume_of(tmp_path / "s"))
    assert outside == []


def test_frames_of_a_multi_frame_source_are_named(tmp_path: Path, drawn: list[str]) -> None:
    volume = write_enhanced(tmp_path / "multi.dcm", order=[3, 1, 0, 2, 4, 7, 6, 5])
    summary_of(volume)
    # The middle slice, z 4, is the fifth frame.
    assert "frame 5" in drawn


def test_lungs_that_were_not_found_do_not_break_the_page(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    assert summary_of(volume, lung_mask=np.zeros(volume.hu.shape, bool)).pixel_array.any()


def test_bundled_font_can_be_scaled() -> None:
    assert bundled(40).getlength("x") > bundled(20).getlength("x")
