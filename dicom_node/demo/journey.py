"""`dicom-node demo`: the whole journey once, on this machine, with nothing else to start.

Two synthetic chest CT series, one with lesions and one without, are sent to a running node; a PACS in this process
receives the Structured Reports, which are printed beside the truth.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from rich.console import Console

from dicom_node.demo.pacs import Pacs
from dicom_node.errors import NodeError
from dicom_node.report.text import as_text
from dicom_node.scu import push
from inference.phantom.chest import make_phantom
from inference.phantom.lesions import LesionSettings
from inference.phantom.series import write_series

TIMEOUT_S = 600.0
QUIET_S = 2.0
SLICES, SIZE = 40, 256
# Lesions as marked as those that the small demonstration network has learned from.
LESIONS = LesionSettings(count=(5, 9), radius_mm=(16, 34), ground_glass_hu=(240, 400))


@dataclass(frozen=True)
class Case:
    """One phantom series that is sent: lesions or not, and its Series Instance UID."""

    name: str
    covid: bool
    series_instance_uid: str
    folder: Path


def run_demo(console: Console) -> bool:
    """Run the demonstration. Returns True when both reports came and agree with the known truth."""
    with tempfile.TemporaryDirectory(prefix="dicom-node-demo-") as folder:
        root = Path(folder)
        console.rule("1. Two synthetic chest CT series")
        cases = [_phantom(root, "positive", seed=11), _phantom(root, "negative", seed=16)]
        for case in cases:
            console.print(f"{case.name}: {SLICES} slices, lesions: {'yes' if case.covid else 'none'}")
        pacs = Pacs(root / "pacs")
        pacs.start()
        try:
            return _journey(console, root, pacs, cases)
        finally:
            pacs.stop()


def _journey(console: Console, root: Path, pacs: Pacs, cases: list[Case]) -> bool:
    port = _free_port()
    environment = _environment(root / "node", port, pacs.port)
    node = subprocess.Popen([sys.executable, "-m", "dicom_node", "run"], env=environment)
    try:
        console.rule("2. Sent to the node by C-STORE")
        _wait_until_listening(port, node)
        for case in cases:
            sent = push.send(case.folder, "127.0.0.1", port, "DICOM_NODE", "DEMO_PACS", console=None)
            console.print(f"{case.name}: {sent.stored} slices stored, {sent.failed} failed")
        console.rule("3. What came back to the PACS")
        right = [_print_report(console, case, _wait_for_report(pacs, case, node)) for case in cases]
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait()
    console.rule("4. The audit trail")
    subprocess.run(
        [sys.executable, "-m", "dicom_node", "audit", "--limit", "60", "--without", "instance"], env=environment
    )
    console.rule()
    verdict = "both reports agree with the known truth" if all(right) else "A REPORT DISAGREES WITH THE KNOWN TRUTH"
    console.print(f"[bold]{verdict}[/bold]. Demonstration model, synthetic images: it says nothing about patients.")
    return all(right)


def _phantom(root: Path, name: str, seed: int) -> Case:
    covid = name == "positive"
    phantom = make_phantom(
        seed, slices=SLICES, size=SIZE, lesions="mixed" if covid else "none", lesion_settings=LESIONS
    )
    paths = write_series(phantom, root / name)
    uid = str(dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID)
    return Case(name, covid, uid, root / name)


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


def _wait_for_report(pacs: Pacs, case: Case, node: subprocess.Popen[bytes]) -> Dataset:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and node.poll() is None:
        for path in pacs.received():
            dataset = dcmread(path)
            if dataset.get("Modality") == "SR" and case.series_instance_uid in _source_series(dataset):
                return dataset
        time.sleep(0.5)
    raise NodeError(f"no report for the {case.name} series came back; see the log above")


def _source_series(report: Dataset) -> set[str]:
    """Series Instance UIDs that a report names as its evidence."""
    studies = report.get("CurrentRequestedProcedureEvidenceSequence", [])
    return {str(item.SeriesInstanceUID) for study in studies for item in study.ReferencedSeriesSequence}


def _print_report(console: Console, case: Case, report: Dataset) -> bool:
    text = as_text(report)
    console.print(f"[bold]{case.name}[/bold], known truth: {'lesions' if case.covid else 'no lesions'}")
    console.print(text, markup=False)
    said = "Positive" if any("Has interpretation = Positive" in line for line in text.splitlines()) else "Negative"
    return said == ("Positive" if case.covid else "Negative")
