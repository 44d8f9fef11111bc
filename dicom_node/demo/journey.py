"""`dicom-node demo`: the whole journey once, on this machine, with nothing else to start.

Two synthetic chest CT series, one with lesions and one without, are sent to a running node; a PACS in this process
receives what the node made of them. What came back lies in a folder afterwards, the pictures as PNG.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import SecondaryCaptureImageStorage
from rich.console import Console

from dicom_node.demo.pacs import Pacs
from dicom_node.errors import NodeError
from dicom_node.report import codes
from dicom_node.scu import push
from inference.phantom.chest import make_phantom
from inference.phantom.lesions import LesionSettings
from inference.phantom.series import write_series
from storage import audit
from storage.database import Database

TIMEOUT_S = 600.0
QUIET_S = 2.0
SLICES, SIZE = 40, 256
# Lesions as marked as those that the small demonstration network has learned from.
LESIONS = LesionSettings(count=(5, 9), radius_mm=(16, 34), ground_glass_hu=(240, 400))
MARK = "made-by-dicom-node-demo"
"""The file by which a folder is known to be an earlier demonstration's, and may be emptied."""
FILE_NAMES = {"SR": "report", "SEG": "segmentation", "OT": "summary", "KO": "key-images"}


@dataclass(frozen=True)
class Case:
    """One phantom series that is sent: lesions or not, its UIDs, and the folder of its slices."""

    name: str
    lesions: bool
    series_instance_uid: str
    study_instance_uid: str
    folder: Path

    @property
    def truth(self) -> str:
        """What is in the images."""
        return "lesions" if self.lesions else "no lesions"


@dataclass(frozen=True)
class Answer:
    """What the node reported of a case. percent: the model's output. files: where its objects lie."""

    case: Case
    percent: float
    positive: bool
    files: tuple[Path, ...]

    @property
    def is_right(self) -> bool:
        """The report agrees with the known truth."""
        return self.positive == self.case.lesions


def run_demo(console: Console, folder: Path) -> bool:
    """Run the demonstration. Returns True when both reports came and agree with the known truth.

    folder: where everything lies afterwards; that of an earlier demonstration is emptied. Raises NodeError when it
    holds anything else.
    """
    _empty(folder)
    console.print("Two synthetic chest CT series, one with lesions and one without:")
    cases = [_phantom(folder / "sent", "positive", seed=11), _phantom(folder / "sent", "negative", seed=16)]
    with Pacs(folder / "pacs") as pacs:
        answers = _journey(console, folder, pacs, cases)
    _print_trail(console, folder / "node")
    shutil.rmtree(folder / "pacs")
    _print_answers(console, folder, answers)
    return all(answer.is_right for answer in answers)


def _empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise NodeError(f"{folder} holds something else than an earlier demonstration; name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _journey(console: Console, folder: Path, pacs: Pacs, cases: list[Case]) -> list[Answer]:
    port = _free_port()
    environment = _environment(folder / "node", port, pacs.port)
    node = subprocess.Popen([sys.executable, "-m", "dicom_node", "run"], env=environment)
    try:
        _wait_until_listening(port, node)
        for case in cases:
            sent = push.send(case.folder, "127.0.0.1", port, "DICOM_NODE", "DEMO_PACS", console=None)
            console.print(f"  {case.name}: {sent.stored} slices sent to the node by C-STORE, {sent.failed} refused")
        return [_answer(folder / case.name, case, _wait_for_objects(pacs, case, node)) for case in cases]
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait()


def _answer(folder: Path, case: Case, objects: list[Dataset]) -> Answer:
    """Put the objects of a case into its folder, and read what the report says."""
    folder.mkdir()
    files = [file for found in objects for file in _write(folder, found)]
    report = next(found for found in objects if found.Modality == "SR")
    [certainty] = [item for item in _items(report) if _is(item, codes.CERTAINTY.value)]
    percent = float(certainty.MeasuredValueSequence[0].NumericValue)
    meanings = {str(code.CodeMeaning) for item in _items(report) for code in item.get("ConceptCodeSequence", [])}
    return Answer(case, percent, "Positive" in meanings, tuple(files))


def _write(folder: Path, found: Dataset) -> Iterator[Path]:
    file = folder / f"{FILE_NAMES.get(found.Modality, found.Modality.lower())}.dcm"
    found.save_as(file)
    yield file
    if found.SOPClassUID == SecondaryCaptureImageStorage:
        pixels = np.frombuffer(found.PixelData, np.uint8)[: found.Rows * found.Columns * 3]
        Image.fromarray(pixels.reshape(found.Rows, found.Columns, 3)).save(file.with_suffix(".png"))
        yield file.with_suffix(".png")


def _items(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from _items(child)


def _is(item: Dataset, code: str) -> bool:
    return any(str(name.get("CodeValue")) == code for name in item.get("ConceptNameCodeSequence", []))


def _print_trail(console: Console, data_dir: Path) -> None:
    database = Database(f"sqlite:///{(data_dir / 'node.db').resolve()}")
    with database.read() as tx:
        counts = Counter(str(row["event"]) for row in audit.search(tx))
        broken = audit.verify(tx)
    database.close()
    state = "no row was changed or removed" if broken is None else "it is BROKEN"
    console.print(f"\nThe audit trail has {counts.total()} rows, chained by SHA-256; {state}:")
    steps = ("instance.received", "series.closed", "job.reported", "result.recorded", "delivery.sent")
    for event in steps:
        console.print(f"  {counts[event]:3} {event}")


def _print_answers(console: Console, folder: Path, answers: list[Answer]) -> None:
    console.print("\nWhat came back to the PACS:")
    for answer in answers:
        for file in answer.files:
            console.print(f"  {file}", soft_wrap=True)
    console.print(f"The node's own data: DICOM_NODE_DATA_DIR={folder / 'node'} dicom-node series list", soft_wrap=True)
    console.print(f"\n{'series':10} {'known truth':12} {'model output':>12}   report")
    for answer in answers:
        said = "positive" if answer.positive else "negative"
        wrong = "" if answer.is_right else "   DISAGREES"
        console.print(f"{answer.case.name:10} {answer.case.truth:12} {answer.percent:10.2f} %   {said}{wrong}")
    verdict = "Both reports agree" if all(answer.is_right for answer in answers) else "A REPORT DISAGREES"
    console.print(f"{verdict} with the known truth.")
    console.print("Demonstration model, synthetic images: this says nothing about patients.")


def _phantom(root: Path, name: str, seed: int) -> Case:
    lesions = name == "positive"
    phantom = make_phantom(
        seed, slices=SLICES, size=SIZE, lesions="mixed" if lesions else "none", lesion_settings=LESIONS
    )
    paths = write_series(phantom, root / name)
    header = dcmread(paths[0], stop_before_pixels=True)
    return Case(name, lesions, str(header.SeriesInstanceUID), str(header.StudyInstanceUID), root / name)


def _environment(data_dir: Path, port: int, pacs_port: int) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DICOM_NODE_")}
    destination = f'[{{"name": "pacs", "ae_title": "DEMO_PACS", "host": "127.0.0.1", "port": {pacs_port}}}]'
    return ours | {
        "DICOM_NODE_DATA_DIR": str(data_dir),
        "DICOM_NODE_RECEIVER__PORT": str(port),
        "DICOM_NODE_COMPLETION__QUIET_S": str(QUIET_S),
        "DICOM_NODE_DESTINATIONS": destination,
        "DICOM_NODE_STORAGE__LOW_DISK_MB": "100",
        "DICOM_NODE_LOGGING__LEVEL": "warning",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_listening(port: int, node: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if node.poll() is not None:
            raise NodeError(f"the node ended with status {node.returncode}; its message is above")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise NodeError("the node did not listen within a minute")


def _wait_for_objects(pacs: Pacs, case: Case, node: subprocess.Popen[bytes]) -> list[Dataset]:
    """The objects of a case's result, when its summary image, which is sent last, has come too."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and node.poll() is None:
        found = [dcmread(path) for path in pacs.received()]
        own = {str(one.SOPInstanceUID): one for one in found if one.StudyInstanceUID == case.study_instance_uid}
        if {"SR", "OT"} <= {str(one.Modality) for one in own.values()}:
            return list(own.values())
        time.sleep(0.5)
    raise NodeError(f"no report for the {case.name} series came back; see the log above")
