"""`dicom-node analyse`: no node and no PACS, with the demonstration model."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from config.settings import ReportSettings
from dicom_node.demo.journey import LESIONS
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests.running import command


def analyse(data_dir: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status, said, _ = command(data_dir, "analyse", *arguments, "--json")
    return status, [json.loads(line) for line in said.splitlines()]


@pytest.mark.parametrize(("seed", "lesions"), [(11, "mixed"), (12, "none")])
def test_a_phantom_is_judged_as_its_truth_says(seed: int, lesions: str, tmp_path: Path) -> None:
    paths = write_series(
        make_phantom(seed, slices=40, size=256, lesions=lesions, lesion_settings=LESIONS), tmp_path / "series"
    )
    status, records = analyse(
        tmp_path / "data", str(tmp_path / "series"), "--output", str(tmp_path / "out"), "--display", "--key-objects"
    )
    assert status == 0 and len(records) == 1
    record = records[0]
    assert record["series_instance_uid"] == str(dcmread(paths[0]).SeriesInstanceUID)
    assert (record["outcome"], record["reason"], record["demonstration"]) == ("ANALYSED", None, True)
    assert record["positive"] is (lesions != "none")
    written = {path.name.rsplit("-", 1)[0]: dcmread(path) for path in (tmp_path / "out").iterdir()}
    # Only a positive result has something that drove it: a second segment, and slices that matter most.
    positive_only = {"key-images"} if record["positive"] else set()
    assert set(written) == {"report", "segmentation", "summary", "display-report"} | positive_only
    assert len(written["segmentation"].SegmentSequence) == (2 if record["positive"] else 1)
    assert (record["localised_ml"] > 0) is record["positive"]


def test_optional_objects_are_written_where_the_site_asks_for_them(tmp_path: Path) -> None:
    write_series(make_phantom(12, slices=40, size=256), tmp_path / "series")
    (tmp_path / "node.toml").write_text("[report]\ndisplay = true\nsummary = false\nsegmentation = false\n")
    config = ["--config", str(tmp_path / "node.toml"), "--output", str(tmp_path / "out")]
    analyse(tmp_path / "data", str(tmp_path / "series"), *config)
    assert {path.name.rsplit("-", 1)[0] for path in (tmp_path / "out").iterdir()} == {"report", "display-report"}


def test_a_refusal_is_done_and_says_why(tmp_path: Path) -> None:
    paths = write_series(make_phantom(13, slices=40, size=256), tmp_path / "series")
    for path in paths[18:20]:
        path.unlink()
    status, records = analyse(tmp_path / "data", str(tmp_path / "series"))
    assert status == 0
    assert (records[0]["outcome"], records[0]["probability"]) == ("NOT_ANALYSED", None)
    assert records[0]["reason"]["code"] == "MISSING_SLICES"


def test_end_slices_that_cannot_be_read_refuse_the_series_and_are_named(tmp_path: Path) -> None:
    paths = write_series(make_phantom(13, slices=40, size=256), tmp_path / "series")
    ends = sorted(paths, key=lambda path: float(dcmread(path).ImagePositionPatient[2]))[:2]
    for path in ends:
        path.write_bytes(path.read_bytes()[132:])
    (tmp_path / "series" / "elsewhere").mkdir()
    (tmp_path / "series" / "elsewhere" / "cut.dcm").write_bytes(b"")
    status, records = analyse(tmp_path / "data", str(tmp_path / "series"))
    assert status == 1, "a file that belongs to no series that could answer for it"
    assert (records[0]["outcome"], records[0]["reason"]["code"]) == ("NOT_ANALYSED", "CORRUPT_INSTANCE")
    assert [file["file"] for file in records[0]["unreadable"]] == sorted(map(str, ends))


def test_images_that_the_node_had_a_part_in_are_not_analysed(tmp_path: Path) -> None:
    for path in write_series(make_phantom(13, slices=40, size=256), tmp_path / "series"):
        image = dcmread(path)
        item = Dataset()
        item.Manufacturer, item.ManufacturerModelName = ReportSettings().manufacturer, "demonstration DeCoVNet"
        image.ContributingEquipmentSequence = [item]
        image.save_as(path)
    _, records = analyse(tmp_path / "data", str(tmp_path / "series"))
    assert records[0]["reason"]["code"] == "OWN_OBJECT" and records[0]["probability"] is None


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no image")
    status, records = analyse(tmp_path / "data", str(tmp_path))
    assert status == 1 and records == []
