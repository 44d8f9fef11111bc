"""Two models on one series: DCMTK's storescu sends it, Debian's Orthanc receives a valid report of each model, once.

The phantom's lesions and emphysema are known, so that every number of the reports has a truth.
"""

import json
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom_node.demo.journey import LESIONS
from inference.models.cards import shipped_folder
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.emphysema import EmphysemaSettings
from inference.phantom.series import write_series
from tests.conftest import require_program
from tests.programs import Orthanc, orthanc, wait_for
from tests.running import Node, running
from tests.validators import dcentvfy_errors, dciodvfy_errors, rows, sr_errors

pytestmark = pytest.mark.peer

TWO = '[{"name": "demonstration"}, {"name": "densitometry"}]'
LAA, PERC15, MEAN, VOLUME = "LAA_SHARE,99DICOMNODE", "PERC_DENSITY,99DICOMNODE", "112031,DCM", "118565006,SCT"
SITES = {"51440002,SCT": "both", "24028007,SCT": "right", "7771000,SCT": "left"}
ZONES = {"281392002,SCT": "upper", "281393007,SCT": "middle", "281394001,SCT": "lower"}


@dataclass(frozen=True)
class Sent:
    """A phantom, its files, and what Orthanc held when the node had nothing left to do. objects: by Series Number."""

    phantom: Phantom
    paths: list[Path]
    objects: dict[int, Path]
    listed: list[dict[str, Any]]
    shown: dict[str, Any]
    trail: Counter[str]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """One phantom through a node of two models."""
    folder = tmp_path_factory.mktemp("two")
    scanner, emphysema = Scanner(noise_hu=10.0, kernel="B30f"), EmphysemaSettings(0.15)
    phantom = make_phantom(
        11, slices=40, size=256, lesions="mixed", lesion_settings=LESIONS, scanner=scanner, emphysema=emphysema
    )
    paths = write_series(phantom, folder / "series")
    with orthanc(folder / "orthanc") as pacs:
        node = Node(folder / "node", pacs.port, "ORTHANC", DICOM_NODE_MODELS=TWO)
        with running(node):
            storescu(node, folder / "series")
            wait_for(lambda: len(pacs.call("/instances")) == 6, 240, "the objects of both results")
            wait_for(lambda: delivered(node) == 2, 60, "both deliveries are recorded")
            listed, shown = node.command("series", "list"), node.command("series", "show", "1")
            trail = Counter(row["event"] for row in node.command("audit", "--limit", "1000"))
        yield Sent(phantom, paths, fetched(pacs, folder), listed, shown, trail)


def storescu(node: Node, series: Path) -> None:
    command = [require_program("storescu"), "-aec", node.ae_title, "127.0.0.1", str(node.port), "+sd", str(series)]
    subprocess.run(command, check=True)


def delivered(node: Node) -> int:
    return int(node.command("status")["deliveries"]["SENT"])


def fetched(pacs: Orthanc, folder: Path) -> dict[int, Path]:
    """Everything that Orthanc holds, each series with its only instance."""
    found = {}
    for identifier in pacs.call("/instances"):
        path = folder / f"{identifier}.dcm"
        path.write_bytes(pacs.file(identifier))
        number = int(dcmread(path, stop_before_pixels=True).SeriesNumber)
        assert number not in found, f"two instances with Series Number {number}"
        found[number] = path
    return found


def test_each_model_sends_its_objects_once_under_numbers_and_uids_of_their_own(sent: Sent) -> None:
    assert sorted(sent.objects) == [9001, 9002, 9004, 9011, 9012, 9014]
    headers = [dcmread(path) for path in sent.objects.values()]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({getattr(header, keyword) for header in headers}) == 6
    [study] = {header.StudyInstanceUID for header in headers}
    assert study == dcmread(sent.paths[0]).StudyInstanceUID
    once = ("job.reported", "result.recorded", "delivery.sent")
    assert {event: sent.trail[event] for event in once} == dict.fromkeys(once, 2)
    tracked = [set(tracking_uids(dcmread(sent.objects[number]))) for number in (9001, 9011)]
    assert all(tracked) and not tracked[0] & tracked[1]


def test_every_object_is_valid_by_every_validator(sent: Sent) -> None:
    assert sr_errors(sent.objects[9001], "TID_1500", ("126000", "840539006", "111012")) == []
    assert sr_errors(sent.objects[9011], "TID_1500", ("126000", "LAA_SHARE", "PERC_DENSITY", "112031", "112032")) == []
    for number in (9002, 9004, 9012, 9014):
        assert dciodvfy_errors(sent.objects[number]) == []
    assert dcentvfy_errors([*sent.paths, *sent.objects.values()]) == []


def test_the_first_report_finds_the_lesions(sent: Sent) -> None:
    found = {(name, value) for _, _, _, name, value in rows(dcmread(sent.objects[9001]))}
    [certainty] = [value for name, value in found if name == "111012,DCM"]
    probability = sent.shown["results"][0]["findings"][0]["certainty"]
    assert probability > 0.9 and float(certainty.split()[0]) == pytest.approx(100 * probability, abs=0.11)
    assert ("363713009,SCT", "10828004,SCT") in found, "positive"
    [volume] = [float(value.split()[0]) for name, value in found if name == VOLUME and value.startswith("39")]
    assert volume == pytest.approx(sent.phantom.lung_volume_ml, rel=0.03)


def test_the_second_report_measures_the_emphysema(sent: Sent) -> None:
    measured, truth = numbers(dcmread(sent.objects[9011])), sent.phantom.emphysema
    assert truth is not None
    for place, part in parts(sent.phantom).items():
        lung, hu = truth.parenchyma & part, sent.phantom.hu
        assert measured[place, LAA] == pytest.approx(100 * truth.share_in(part), abs=0.25), place
        assert measured[place, PERC15] == pytest.approx(np.percentile(hu[lung], 15), abs=1.0), place
        assert measured[place, MEAN] == pytest.approx(hu[lung].mean(), abs=2.0), place
        volume_ml = np.count_nonzero(sent.phantom.lung_mask & part) * np.prod(sent.phantom.spacing_mm) / 1000
        assert measured[place, VOLUME] == pytest.approx(volume_ml, rel=0.03), place


def test_the_second_segmentation_holds_the_lungs_and_the_low_attenuation(sent: Sent) -> None:
    segmentation, z_y_x_mm = dcmread(sent.objects[9012]), sent.phantom.spacing_mm
    assert [str(item.SegmentLabel) for item in segmentation.SegmentSequence] == [
        "Right lung", "Left lung", "Lung below -950 HU"
    ]  # fmt: skip
    voxels: Counter[int] = Counter()
    for frame, of in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        voxels[int(of.SegmentIdentificationSequence[0].ReferencedSegmentNumber)] += int(np.count_nonzero(frame))
    right, left, low = (voxels[number] * np.prod(z_y_x_mm) / 1000 for number in (1, 2, 3))
    measured = numbers(dcmread(sent.objects[9011]))
    assert (right, left) == pytest.approx((measured["right", VOLUME], measured["left", VOLUME]), abs=1)
    assert low == pytest.approx(np.count_nonzero(sent.phantom.emphysema.low) * np.prod(z_y_x_mm) / 1000, rel=0.02)


def test_the_list_shows_both_results(sent: Sent) -> None:
    [row] = sent.listed
    assert [(one["model_name"], one["outcome"]) for one in row["models"]] == [
        ("demonstration", "ANALYSED"), ("densitometry", "ANALYSED")
    ]  # fmt: skip
    assert [len(result["deliveries"]) for result in sent.shown["results"]] == [1, 1]


def test_a_model_that_fails_and_one_that_refuses_stop_no_other(tmp_path: Path, sent: Sent) -> None:
    models = tmp_path / "node" / "models"
    copied("demonstration", models / "broken")
    copied("densitometry", models / "strict", ("thickness_mm = [0.25, 10.0]", "thickness_mm = [0.25, 5.0]"))
    names = ("broken", "strict", "densitometry")
    variables = {
        "DICOM_NODE_MODELS": json.dumps([{"name": name} for name in names]),
        "DICOM_NODE_WORKER__MAX_ATTEMPTS": "1",
        "DICOM_NODE_WORKER__LEASE_S": "60",  # with one attempt, a busy machine must not cost a job its lease
        "DICOM_NODE_WORKER__RETRY_DELAY_S": "0.1",
        "DICOM_NODE_REPORT__REPORT_NOT_ANALYSED": "true",
    }
    with orthanc(tmp_path / "orthanc") as pacs:
        node = Node(tmp_path / "node", pacs.port, "ORTHANC", **variables)
        with running(node):
            (models / "broken" / "unet.safetensors").unlink()
            storescu(node, sent.paths[0].parent)
            wait_for(lambda: len(pacs.call("/instances")) == 4, 240, "the objects of the other two results")
            wait_for(lambda: delivered(node) == 2, 60, "both deliveries are recorded")
            wait_for(lambda: node.command("status")["jobs"]["FAILED"] == 1, 60, "the first model is out of attempts")
            shown, status = node.command("series", "show", "1"), node.command("status")
        objects = fetched(pacs, tmp_path)
    assert sorted(objects) == [9011, 9021, 9022, 9024]
    assert dciodvfy_errors(objects[9011]) == dciodvfy_errors(objects[9021]) == []
    assert any("slice thickness is 7.455 mm" in value for *_, value in rows(dcmread(objects[9011])))
    assert numbers(dcmread(objects[9021]))["both", LAA] == numbers(dcmread(sent.objects[9011]))["both", LAA]
    states = [(one["model_name"], one["job_state"], one["reason_code"]) for one in shown["models"]]
    assert states == [
        ("broken", "FAILED", None), ("strict", "REPORTED", "SLICE_THICKNESS"), ("densitometry", "REPORTED", None)
    ]  # fmt: skip
    [failed] = status["failed_jobs"]
    assert failed["model_name"] == "broken" and "its model cannot be opened" in failed["failure_reason"]
    with sqlite3.connect(tmp_path / "node" / "node.db") as index:
        waiting = index.execute("SELECT model_name, waits_for FROM series_without_outcome").fetchall()
    assert waiting == [("broken", f"failed: {failed['failure_reason']}")]


def copied(shipped: str, folder: Path, *changes: tuple[str, str]) -> None:
    """A shipped model under the folder's name, with changes to its card."""
    shutil.copytree(shipped_folder() / shipped, folder)
    card = folder / "card.toml"
    text = card.read_text()
    for old, new in ((f'name = "{shipped}"\nversion', f'name = "{folder.name}"\nversion'), *changes):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    card.write_text(text)


def parts(phantom: Phantom) -> dict[str, Any]:
    """Both lungs, each lung, and each third of their height: bool arrays that broadcast to (Z, Y, X)."""
    depth, _, width = phantom.hu.shape
    z, x = np.arange(depth)[:, None, None], np.arange(width)[None, None, :]
    lung = np.flatnonzero(phantom.lung_mask.any(axis=(1, 2)))
    third = (z - lung[0] + 0.5) * 3 // (lung[-1] + 1 - lung[0])  # where the middle of a slice lies
    sides = {"both": np.ones((1, 1, 1), bool), "right": x < width / 2, "left": x >= width / 2}
    return {**sides, "lower": third == 0, "middle": third == 1, "upper": third == 2}


def numbers(report: Dataset) -> dict[tuple[str, str], float]:
    """The measurements of a report by place and concept; those of the low attenuation's own group are left out."""
    found: dict[tuple[str, str], float] = {}
    for group in groups(report):
        finding = [row for row in rows(group) if row[3] == "121071,DCM"]
        if any(value.startswith("LAA") for *_, value in finding):
            continue
        own = place_of(group)
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                _, _, _, concept, value = next(iter(rows(item)))
                found[place_of(item) or own, concept] = float(value.split()[0])
    return found


def tracking_uids(report: Dataset) -> list[str]:
    return [value for _, _, _, name, value in rows(report) if name == "112040,DCM"]


def groups(report: Dataset) -> list[Dataset]:
    [measurements] = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010"]
    return list(measurements.ContentSequence)


def place_of(item: Dataset) -> str:
    """ "upper", "right", ... as an item says for itself; empty if it says nothing."""
    codes = [
        value
        for site in item.get("ContentSequence", [])
        if site.ConceptNameCodeSequence[0].CodeValue == "363698007"
        for *_, value in rows(site)
    ]
    places = [SITES.get(code) or ZONES.get(code) for code in codes]
    return next((place for place in reversed(places) if place), "")
