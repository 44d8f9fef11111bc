"""A model's table and histogram on the summary page: what they say, and where it is drawn."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dicom_node.report.charts import draw_histogram, draw_table
from dicom_node.report.context import ReportContext
from dicom_node.report.planes import LUNG_COLOUR, REGION_COLOUR, anatomy_of, axial, lung_box
from dicom_node.report.sources import read_sources
from dicom_node.report.summary import build_summary
from dicom_node.report.typesetting import Box
from inference.plug import Histogram, Table
from tests.factories import Grid, finding_on, lesion, lungs, volume_of, write_series

BOX = Box(20, 10, 266, 244)
DENSITY = Histogram(
    "Both lungs, % of voxels per 10 HU",
    "HU",
    tuple(range(-1050, -399, 10)),
    tuple(20.0 if edge == -900 else 5.0 if edge == -1000 else 0.0 for edge in range(-1050, -400, 10)),
    ((-950.0, "-950 HU"), (-926.0, "Perc15 -926 HU")),
    "%",
    (-1050.0, -950.0),
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """Every text that is drawn from here on, and where."""
    texts: dict[str, tuple[float, float]] = {}
    original = ImageDraw.ImageDraw.text

    def record(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *args: object, **named: object) -> None:
        texts[text] = xy
        original(self, xy, text, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


def chart(histogram: Histogram) -> Image.Image:
    image = Image.new("RGB", (300, 270))
    draw_histogram(ImageDraw.Draw(image), BOX, histogram)
    return image


def columns_of(image: Image.Image, colour: tuple[int, int, int], row: int) -> list[int]:
    pixels = np.asarray(image)[row]
    return [int(x) for x in np.flatnonzero((pixels == colour).all(axis=1))]


def test_a_histogram_has_its_title_its_axes_with_units_and_its_marks(drawn: dict[str, tuple[float, float]]) -> None:
    chart(DENSITY)
    assert {"Both lungs, % of voxels per 10 HU", "-950 HU", "Perc15 -926 HU", "%", "HU"} <= set(drawn)
    assert {"-1000", "-800", "-600", "-400"} <= set(drawn) and {"0", "5", "10", "15", "20"} <= set(drawn)
    assert drawn["-1000"][0] < drawn["-800"][0] < drawn["-400"][0]
    assert drawn["20"][1] < drawn["0"][1]


def test_bars_stand_at_their_values_and_those_in_the_highlight_are_in_the_colour_of_findings(
    drawn: dict[str, tuple[float, float]],
) -> None:
    image = chart(DENSITY)
    foot = int(drawn["0"][1]) - 3
    low = columns_of(image, REGION_COLOUR, foot)
    high = columns_of(image, (110, 150, 185), foot)
    assert low and high
    # -1000 to -990 and -900 to -890, on the scale that the numbers below the axis give.
    per_hu = (drawn["-400"][0] - drawn["-1000"][0]) / 600
    assert abs(low[0] - drawn["-1000"][0]) <= 1 and abs(high[0] - (drawn["-1000"][0] + 100 * per_hu)) <= 1
    assert len(columns_of(image, (110, 150, 185), int(drawn["15"][1]))) == len(high)
    assert not columns_of(image, REGION_COLOUR, int(drawn["10"][1]))


def test_marks_stand_at_their_values_and_their_words_do_not_cover_each_other(
    drawn: dict[str, tuple[float, float]],
) -> None:
    image = chart(DENSITY)
    per_hu = (drawn["-400"][0] - drawn["-1000"][0]) / 600
    row = (int(drawn["15"][1]) + int(drawn["20"][1])) // 2
    lines = columns_of(image, (240, 240, 240), row)
    assert [round((x - drawn["-1000"][0]) / per_hu - 1000) for x in lines] == pytest.approx([-950, -926], abs=2)
    assert abs(drawn["-950 HU"][1] - drawn["Perc15 -926 HU"][1]) >= 14


@pytest.mark.parametrize(
    "changed",
    [
        {"edges": (0.0, 1.0), "counts": (0.0,)},
        {"edges": (0.0, 1e-12), "counts": (1e12,)},
        {"edges": tuple(range(20001)), "counts": (1.0,) * 20000},
        {"marks": ((float("nan"), "?"), (1e9, "far away"), *(((-900.0, "m" * 5000),) * 50))},
        {"title": "t" * 100000, "unit": "\u202e" * 70, "count_unit": "u" * 5000},
    ],
)
def test_an_odd_histogram_of_a_third_party_is_drawn_within_its_box(changed: dict[str, object]) -> None:
    pixels = np.asarray(chart(replace(DENSITY, **changed)))  # type: ignore[arg-type]
    outside = np.ones(pixels.shape[:2], bool)
    outside[BOX.y - 4 : BOX.y + BOX.height + 12, BOX.x - 6 : BOX.x + BOX.width + 8] = False
    assert not pixels[outside].any()


@pytest.mark.parametrize(
    ("edges", "counts"),
    [
        ((0.0,), ()),
        ((0.0, 0.0), (1.0,)),
        ((1.0, 0.0), (1.0,)),
        ((0.0, 1.0), (-1.0,)),
        ((0.0, 1.0), (float("nan"),)),
        ((0.0, float("inf")), (1.0,)),
    ],
)
def test_a_histogram_that_cannot_be_drawn_cannot_be_made(edges: tuple[float, ...], counts: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="edges"):
        Histogram("", "", edges, counts)


def test_a_table_has_its_columns_in_line_and_its_first_row_in_the_colour_of_findings(
    drawn: dict[str, tuple[float, float]],
) -> None:
    image = Image.new("RGB", (320, 120))
    table = Table((("", ""), ("volume", "mL")), (("both", "5000"), ("right", "2600")))
    draw_table(ImageDraw.Draw(image), Box(8, 8, 304, 100), table)
    assert drawn["5000"][0] == drawn["2600"][0] == drawn["volume"][0] == drawn["mL"][0]
    assert drawn["both"][1] == drawn["5000"][1] < drawn["right"][1] == drawn["2600"][1]
    pixels = np.asarray(image)
    assert (pixels[int(drawn["both"][1]) : int(drawn["right"][1])] == REGION_COLOUR).all(axis=2).any()
    assert not (pixels[int(drawn["right"][1]) + 2 :] == REGION_COLOUR).all(axis=2).any()
    with pytest.raises(ValueError, match="rows"):
        Table((("", ""),), (("one", "two"),))


def test_a_finding_of_many_spots_is_an_area_that_the_grey_shows_through_and_not_an_outline(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    outlined = finding_on(volume, lung_mask=lungs(grid), localisation=lesion(grid))
    segments = tuple(
        replace(one, drawn="area") if one.purpose == "finding" else one for one in outlined.output.segments
    )
    anatomy = anatomy_of(replace(outlined, output=replace(outlined.output, segments=segments)), volume)
    assert anatomy.region is None and anatomy.area is not None and anatomy.shows_finding
    assert anatomy.focus == anatomy_of(outlined, volume).focus or lesion(grid)[anatomy.focus]
    size = (200, 200)
    tinted, plain = (
        np.asarray(axial(one, anatomy.focus[0], lung_box(anatomy), size), float)
        for one in (anatomy, replace(anatomy, area=None))
    )
    coloured = (tinted != plain).any(axis=2)
    share = lesion(grid)[anatomy.focus[0]].sum() / coloured.size
    assert coloured.any() and share > 0
    assert not (tinted[coloured] == REGION_COLOUR).all(axis=1).any()  # the grey shows through
    assert (tinted[coloured][:, 0] >= tinted[coloured][:, 2]).all()
    assert (tinted == LUNG_COLOUR).all(axis=2).any()


def test_the_planes_through_many_spots_go_through_the_lung_that_has_more_of_them(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    both, spots = lungs(grid), np.zeros(grid.shape, bool)
    spots[::2, ::3, ::2] = both[::2, ::3, ::2]
    middle = round(float(np.argwhere(both)[:, 2].mean()))
    for emptied, in_lower_columns in ((slice(middle + 3, None), True), (slice(0, middle - 3), False)):
        more = spots.copy()
        more[:, ::6, emptied] = False
        finding = finding_on(volume, lung_mask=both, localisation=more)
        segments = tuple(
            replace(one, drawn="area") if one.purpose == "finding" else one for one in finding.output.segments
        )
        focus = anatomy_of(replace(finding, output=replace(finding.output, segments=segments)), volume).focus
        assert more[focus] and (focus[2] < middle) == in_lower_columns


def test_the_page_of_a_model_with_table_and_histogram_has_both_and_fewer_slices(
    tmp_path: Path, drawn: dict[str, tuple[float, float]]
) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    plain = finding_on(volume, lung_mask=lungs(grid))
    table = Table((("", ""), ("< -950 HU", "%")), (("both lungs", "13.6"),))
    output = replace(plain.output, histogram=DENSITY, table=table, lines=(), findings=())
    context = ReportContext(created_at=datetime(2026, 3, 1, 12, tzinfo=UTC))
    build_summary(replace(plain, output=output), volume, read_sources(volume), context)
    assert {"13.6", "both lungs", "Perc15 -926 HU"} <= set(drawn)
    assert not any("Volume" in words for words in drawn)
    assert drawn["13.6"][0] < 340 and drawn["Perc15 -926 HU"][0] > 700
    assert all(0 <= x < 1024 and 0 <= y < 768 for x, y in drawn.values())
