"""`dicom-node demo`: the whole journey once, on this machine, with nothing else to start.

Two synthetic chest CT series, one with lesions and emphysema and one without, are sent to a running node. Two models
analyse each: the demonstration model and the lung densitometry. A PACS in this process receives their reports. What
came back lies in a folder afterwards, the pictures as PNG.
"""

import contextlib
import json
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

from pydicom import Dataset, dcmread
from rich.console import Console

from dicom_node.demo.pacs import Pacs
from dicom_node.demo.pages import Pages, free_port
from dicom_node.demo.reports import Truth, Verdict, judge, lines, write
from dicom_node.errors import NodeError
from dicom_node.scu import push
from inference.phantom.chest import Scanner, make_phantom
from inference.phantom.emphysema import EmphysemaSettings
from inference.phantom.lesions import LesionSettings
from inference.phantom.series import write_series
from storage import audit
from storage.database import Database

TIMEOUT_S = 600.0
QUIET_S = 2.0
SLICES, SIZE = 40, 256
# Lesions as marked as those that the small demonstration network has learned from.
LESIONS = LesionSettings(count=(5, 9), radius_mm=(16, 34), ground_glass_hu=(240, 400))
SCANNER = Scanner(noise_hu=10.0, kernel="B30f")
EMPHYSEMA = 0.15
MODELS = {9000: "demonstration", 9010: "densitometry"}
"""The number that those of the series of each model's objects follow."""
MARK = "made-by-dicom-node-demo"
"""The file by which a folder is known to be an earlier demonstration's, and may be emptied."""


@dataclass(frozen=True)
class Case:
    """One phantom series that is sent: what is in it, its study's UID, and the folder of its slices."""

    name: str
    truth: Truth
    study_instance_uid: str
    folder: Path


@dataclass(frozen=True)
class Answer:
    """What one model reported of a case. folder: where all its objects lie."""

    case: Case
    model: str
    report: Dataset
    verdict: Verdict
    folder: Path


def run_demo(console: Console, folder: Path, keep: bool = False) -> bool:
    """Run the demonstration. Returns True when all reports came and agree with the known truth.

    folder: where everything lies afterwards; that of an earlier demonstration is emptied. Raises NodeError when it
    holds anything else, or a report does not come. keep: the node goes on, with its pages, until Ctrl-C.
    """
    _empty(folder)
    console.print("Two synthetic chest CT series, one with lesions and emphysema and one without:")
    cases = [_phantom(folder / "sent", "positive", seed=11), _phantom(folder / "sent", "negative", seed=16)]
    with contextlib.ExitStack() as running:
        pacs = running.enter_context(Pacs(folder / "pacs"))
        running.callback(shutil.rmtree, folder / "pacs")
        port, pages = free_port(), Pages(folder / "node") if keep else None
        environment = _environment(folder / "node", port, pacs.port) | (pages.prepare() if pages else {})
        node = running.enter_context(_node(environment))
        answers = _journey(console, folder, pacs, cases, node, port)
        if pages is None:
            running.close()
        _print_trail(console, folder / "node")
        _print_answers(console, folder, answers)
        if pages is None:
            console.print(f"To look at it in a browser: {_command()} demo --keep", soft_wrap=True)
        else:
            pages.stay(console, node)
    return all(answer.verdict.is_right for answer in answers)


def _command() -> str:
    """How this program was called, so that what is printed can be typed: `make demo` calls it by its path."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "dicom-node" and shutil.which("dicom-node") is None else "dicom-node"


def _empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise NodeError(f"{folder} holds something else than an earlier demonstration; name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


@contextlib.contextmanager
def _node(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A node that runs."""
    node = subprocess.Popen([sys.executable, "-m", "dicom_node", "run"], env=environment)
    try:
        yield node
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait()


def _journey(
    console: Console, folder: Path, pacs: Pacs, cases: list[Case], node: subprocess.Popen[bytes], port: int
) -> list[Answer]:
    _wait_until_listening(port, node)
    for case in cases:
        sent = push.send(case.folder, "127.0.0.1", port, "DICOM_NODE", "DEMO_PACS", console=None)
        console.print(f"  {case.name}: {sent.stored} slices sent to the node by C-STORE, {sent.failed} not taken")
        if sent.failed:
            # Its report would not come, or would be of a part of it.
            raise NodeError(f"the node did not take the whole {case.name} series ({sent.detail}); run it again")
    return [answer for case in cases for answer in _answers(folder, case, _wait_for_objects(pacs, case, node))]


def _answers(folder: Path, case: Case, objects: list[Dataset]) -> list[Answer]:
    """Put the objects of each model into a folder, and read what its report says."""
    answers = []
    for first, model in MODELS.items():
        own = [found for found in objects if 0 < int(found.SeriesNumber) - first < 10]
        reports = [found for found in own if found.Modality == "SR"]
        if len(reports) != 1:
            raise NodeError(f"{len(reports)} reports of {model} on the {case.name} series came back")
        into = folder / case.name / model
        into.mkdir(parents=True)
        for found in own:
            write(found, into)
        answers.append(Answer(case, model, reports[0], judge(reports[0], case.truth), into))
    return answers


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
    console.print("\nWhat came back to the PACS, and what each report says of both lungs:")
    for answer in answers:
        console.print(f"  {answer.folder}/report.dcm, segmentation.dcm, summary.dcm, summary.png", soft_wrap=True)
        for line in lines(answer.report):
            console.print(f"    {line}", soft_wrap=True)
    console.print(f"The node's own data: DICOM_NODE_DATA_DIR={folder / 'node'} dicom-node series list", soft_wrap=True)
    console.print(f"\n{'series':9} {'model':14} {'known truth':22} report")
    for answer in answers:
        wrong = "" if answer.verdict.is_right else "   DISAGREES"
        said = f"{answer.verdict.known:22} {answer.verdict.said}{wrong}"
        console.print(f"{answer.case.name:9} {answer.model:14} {said}")
    verdict = "All reports agree" if all(answer.verdict.is_right for answer in answers) else "A REPORT DISAGREES"
    console.print(f"{verdict} with the known truth.")
    console.print("Demonstration model, synthetic images: this says nothing about patients.")


def _phantom(root: Path, name: str, seed: int) -> Case:
    lesions = name == "positive"
    phantom = make_phantom(
        seed,
        slices=SLICES,
        size=SIZE,
        lesions="mixed" if lesions else "none",
        lesion_settings=LESIONS,
        scanner=SCANNER,
        emphysema=EmphysemaSettings(EMPHYSEMA if lesions else 0.0),
    )
    assert phantom.emphysema is not None  # noqa: S101 - it was asked for
    header = dcmread(write_series(phantom, root / name)[0], stop_before_pixels=True)
    truth = Truth(lesions, 100 * phantom.emphysema.share)
    return Case(name, truth, str(header.StudyInstanceUID), root / name)


def _environment(data_dir: Path, port: int, pacs_port: int) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DICOM_NODE_")}
    destination = f'[{{"name": "pacs", "ae_title": "DEMO_PACS", "host": "127.0.0.1", "port": {pacs_port}}}]'
    return ours | {
        "DICOM_NODE_DATA_DIR": str(data_dir),
        "DICOM_NODE_RECEIVER__PORT": str(port),
        "DICOM_NODE_COMPLETION__QUIET_S": str(QUIET_S),
        "DICOM_NODE_DESTINATIONS": destination,
        "DICOM_NODE_MODELS": json.dumps([{"name": model} for model in MODELS.values()]),
        "DICOM_NODE_STORAGE__LOW_DISK_MB": "100",
        "DICOM_NODE_LOGGING__LEVEL": "warning",
    }


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
    """The objects of a case's results, when the summary image of each, which is sent last, has come too."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and node.poll() is None:
        found = [dcmread(path) for path in pacs.received()]
        own = {str(one.SOPInstanceUID): one for one in found if one.StudyInstanceUID == case.study_instance_uid}
        came = {(str(one.Modality), int(one.SeriesNumber) // 10 * 10) for one in own.values()}
        if {(kind, first) for kind in ("SR", "OT") for first in MODELS} <= came:
            return list(own.values())
        time.sleep(0.5)
    raise NodeError(f"not all reports on the {case.name} series came back; see the log above")
