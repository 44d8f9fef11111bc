"""Whatever stands in a source's header, a series ends in valid objects or in a coded reason. `FUZZ=100000` for more."""

import io
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.valuerep import validate_value

from config.reasons import ReasonCode, Refusal
from config.settings import ReportSettings, Settings
from config.uids import is_uid
from dicom_node.analysis.analyse import Analysis, analyse
from dicom_node.analysis.result_objects import ResultObjects, report_objects
from dicom_node.report import copied
from dicom_node.report.header_reader import tag_of
from dicom_node.report.sources import IDENTITY, read_headers
from inference.errors import CorruptInstance
from inference.plug import Output
from inference.volume.ct_volume import CTVolume
from tests.factories import Grid, finding_on, lesion, model, write_series
from tests.fuzz.headers import KEYWORDS, REPRESENTATIONS, TEXTUAL, element, hostile_value, rewrite, spoil

ROUNDS = int(os.environ.get("FUZZ", "4000"))
GRID = Grid(shape=(4, 24, 24))
SETTINGS = Settings(report=ReportSettings(display=True, key_objects=True, report_not_analysed=True))
pytestmark = pytest.mark.filterwarnings("ignore")


class FoundSomething:
    """A model that is positive on anything."""

    def __init__(self) -> None:
        self.identity = model()
        self.loaded = self

    def analyse(self, volume: CTVolume) -> Output:
        region = lesion(GRID)
        return finding_on(volume, localisation=region, heat=region * np.uint8(255)).output


def outcome(folder: Path) -> tuple[Analysis, ResultObjects]:
    paths = sorted(folder.iterdir())
    analysis = analyse(paths, FoundSomething())  # type: ignore[arg-type]
    return analysis, report_objects(analysis, paths, model(), SETTINGS)


def refused(folder: Path) -> ResultObjects:
    """The objects of the same series if a rule refused it."""
    refusal = Refusal(ReasonCode.MISSING_SLICES, "One gap.")
    return report_objects(Analysis(None, refusal, None), sorted(folder.iterdir()), model(), SETTINGS)


def problems_of(header: Dataset) -> list[str]:
    """What of a header's texts breaks the rules of PS3.5, seen without the node's own rules."""
    found = []
    texts = (one for one in header.iterall() if dictionary_VR(one.tag) in TEXTUAL)
    for one in texts:
        if dictionary_VR(one.tag) != one.VR or (one.VM > 1 and dictionary_VM(one.tag) == "1"):
            found.append(f"{one.keyword}: {one.VR}, {one.VM} values")
        for value in map(str, one.value if one.VM > 1 else [one.value]):
            # A UID is kept as it is, leading zeros and all.
            valid = is_uid(value) if one.VR == "UI" else is_valid(one.VR, value)
            if one.value and not valid:
                found.append(f"{one.keyword}: {value!r}")
    return found


def is_valid(vr: str, value: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            validate_value(vr, value, pydicom.config.RAISE)
        except (ValueError, Warning):
            return False
    return True


def test_every_listed_attribute_in_every_representation_is_copied_valid_or_left_empty(tmp_path: Path) -> None:
    dice = random.Random(20261129)
    write_series(tmp_path / "s", Grid(shape=(1, 4, 4)))
    path = tmp_path / "s" / "0000.dcm"
    whole = path.read_bytes()
    cases = [(keyword, vr) for keyword in KEYWORDS for vr in REPRESENTATIONS]
    for keyword, vr in dice.sample(cases, min(len(cases), max(ROUNDS // 2, 50))) * max(1, ROUNDS // 10000):
        path.write_bytes(whole)
        value = hostile_value(dice, vr)
        rewrite(path, {tag_of(keyword): element(tag_of(keyword), vr, value)})
        try:
            (header,) = read_headers([path])
        except CorruptInstance:
            # A character set that is none stops pydicom before it has read anything.
            assert keyword == "SpecificCharacterSet"
            continue
        assert problems_of(header) == [], (keyword, vr, value[:100])
        assert all(name in header for name in copied.REQUIRED)
        assert len(encoded(header)) < 100_000


def encoded(header: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, header, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def test_a_series_with_any_header_ends_in_its_objects_or_in_a_coded_reason(tmp_path: Path) -> None:
    dice = random.Random(4711)
    ends = set()
    for number in range(max(ROUNDS // 200, 5)):
        folder = tmp_path / str(number)
        write_series(folder, GRID)
        keywords = dice.sample([*KEYWORDS, *IDENTITY], dice.choice((1, 8, 40)))
        spoil(folder, keywords, dice)
        analysis, built = outcome(folder)
        for item in refused(folder).objects:
            assert problems_of(pydicom.dcmread(io.BytesIO(item.part10))) == [], (number, keywords)
        if analysis.finding is None:
            assert analysis.refusal is not None and analysis.refusal.code
            ends.add("refused")
            continue
        ends.add("reported")
        kinds = {item.kind for item in built.objects}
        assert {"report", "segmentation", "summary", "display-report", "key-images", "report-enhanced"} <= kinds
        for item in built.objects:
            dataset = pydicom.dcmread(io.BytesIO(item.part10))
            assert problems_of(dataset) == [], (number, keywords, item.kind)
    assert "reported" in ends
