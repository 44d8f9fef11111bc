"""What the objects of the first model say is what they said before models had a plug, element by element.

The fixture holds the objects as the version before built them, except that the output is coded with the digits of the
page (91 for 91.273) and that the display report's texts are shorter. What that version took from the clock or from
packages is left out. `python -m tests.unit.test_report_unchanged FILE` writes the objects of this version.
"""

import gzip
import hashlib
import json
import re
import sys
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from config.reasons import Refusal
from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.sources import read_sources
from inference.models.cards import OperatingPoint
from inference.volume.ct_volume import CTVolume
from storage.object_kinds import ObjectKind
from tests.factories import Grid, finding_on, lesion, model, volume_of, write_series

FIXTURE = Path(__file__).parents[1] / "fixtures" / "objects-0.2.0.json.gz"
POINTS = (
    OperatingPoint("published", 0.5, 0.84, 0.982, "131 test cases"),
    OperatingPoint("balanced", 0.117, 0.907, 0.911, "131 test cases"),
)
CONTEXT = ReportContext(
    created_at=datetime(2026, 3, 1, 12, tzinfo=UTC), software_version="1", operating_points=POINTS, prevalence=0.05
)
CASES = (
    "positive",
    "negative",
    "not localised",
    "not asked for",
    "demonstration",
    "unverified",
    "one lung",
    "some slices",
    "no segmentation",
    "no lungs",
    "refused",
)
# Text that a package draws; its words have tests of their own.
_LEFT_OUT = {ObjectKind.SUMMARY: "7FE00010"}


def objects_of(case: str, volume: CTVolume) -> list[tuple[str, Dataset]]:
    """The objects of one case, as this version builds them."""
    sources, nothing = read_sources(volume), np.zeros(Grid().shape, bool)
    heat = np.where(lesion(Grid()), 200, 0).astype(np.uint8)
    if case == "refused":
        refusal = Refusal("MISSING_SLICES", "Two slices are missing.")
        return [("report", build_not_analysed(refusal, sources, CONTEXT, model()))]
    changes: dict[str, Any] = {
        "positive": {"localisation": lesion(Grid()), "heat": heat},
        "negative": {"probability": 0.0312, "localisation": nothing, "heat": np.zeros_like(heat)},
        "not localised": {"localisation": nothing, "heat": heat},
        "not asked for": {},
        "demonstration": {"localisation": lesion(Grid()), "model": model(demonstration=True, verified=False)},
        "unverified": {"model": model(verified=False, threshold=0.117)},
        "one lung": {"left_lung_ml": 0.0, "right_lung_ml": 0.0},
        "some slices": {"verdict_slices": (1, 2), "localisation": lesion(Grid())},
        "no segmentation": {"localisation": lesion(Grid()), "heat": heat},
        "no lungs": {"lung_mask": nothing, "lung_volume_ml": 0.0, "left_lung_ml": 0.0, "right_lung_ml": 0.0},
    }[case]
    left_out = {ObjectKind.SEGMENTATION} if case == "no segmentation" else set()
    if case not in ("positive", "negative"):  # it is the slowest to make
        left_out.add(ObjectKind.SUMMARY)
    kinds = [kind for kind in KINDS if kind not in left_out]
    return [(str(kind), one) for kind, one in build_all(finding_on(volume, **changes), volume, sources, CONTEXT, kinds)]


def plain(kind: str, dataset: Dataset) -> dict[str, Any]:
    """An object as JSON; pixels as their digest."""
    written = dcmread(BytesIO(to_part10(dataset)))
    found: dict[str, Any] = json.loads(written.to_json(bulk_data_threshold=1 << 30))
    if "7FE00010" in found:
        found["7FE00010"] = hashlib.sha256(written.PixelData).hexdigest()
    for item in found.get("0018A001", {}).get("Value", []):
        if "highdicom" in str(item):  # it states the time by the clock
            item.pop("0018A002")
    return {tag: value for tag, value in found.items() if tag != _LEFT_OUT.get(ObjectKind(kind))}


def everything(folder: Path) -> dict[str, Any]:
    """All objects of all cases."""
    write_series(folder / "series")
    volume = volume_of(folder / "series")
    return {case: {kind: plain(kind, one) for kind, one in objects_of(case, volume)} for case in CASES}


def without_uids(objects: dict[str, Any]) -> Any:
    """Generated UIDs follow from the version of the templates; in their place, which of them each one is."""
    seen: dict[str, str] = {}
    return json.loads(
        re.sub(r'"2\.25\.\d+"', lambda uid: seen.setdefault(uid[0], f'"UID {len(seen)}"'), json.dumps(objects))
    )


@pytest.mark.parametrize("case", CASES)
def test_the_objects_say_what_they_said_before(case: str, tmp_path: Path) -> None:
    before = json.loads(gzip.decompress(FIXTURE.read_bytes()))[case]
    write_series(tmp_path / "series")
    now = {kind: plain(kind, one) for kind, one in objects_of(case, volume_of(tmp_path / "series"))}
    assert list(now) == list(before)
    now, before = without_uids(now), without_uids(before)
    for kind, found in now.items():
        assert found == before[kind], kind


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        text = json.dumps(everything(Path(scratch)), sort_keys=False)
    Path(sys.argv[1]).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
