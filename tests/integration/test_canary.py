"""A canary goes the whole way: to the node's own receiver, through the demonstration model, to its own destination."""

import json
from pathlib import Path

from pydicom import dcmread
from typer.testing import CliRunner

from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.worker import Worker
from dicom_node.canary.runner import Canaries
from dicom_node.cli.app import app
from dicom_node.completion.closing import Completion
from dicom_node.delivery.sender import DestinationSender
from dicom_node.demo.pacs import Pacs
from dicom_node.runtime.metrics import problems
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage import canaries
from storage.canaries import CanaryState
from tests.programs import free_port
from tests.receiving import Node


def test_it_goes_the_whole_way_and_to_no_other_destination(tmp_path: Path, monkeypatch) -> None:
    write_series(make_phantom(11, slices=40, size=256, lesions="mixed"), tmp_path / "study")
    with Pacs(tmp_path / "canaries", ae_title="PLACE") as place, Pacs(tmp_path / "pacs", ae_title="PACS") as clinic:
        destinations = [
            {"name": "clinic", "ae_title": "PACS", "host": "127.0.0.1", "port": clinic.port},
            {"name": "place", "ae_title": "PLACE", "host": "127.0.0.1", "port": place.port, "send_results": False},
        ]
        given = {"every_hours": 1, "folder": tmp_path / "study", "destination": "place"}
        with Node(tmp_path / "node", {"port": free_port()}, canary=given, destinations=destinations) as node:
            flying = Canaries(node.settings, node.database, node.files)
            flying.step()  # asks
            flying.step()  # sends
            completion = Completion(node.settings, node.database, node.files)
            completion.close_due_series(current_models(node.settings), node.database.now() + 60)
            completion.stop()
            worker = Worker(node.settings, node.database, node.files, "cpu")
            assert worker.work_once(node.database.now())
            for destination in node.settings.served_destinations:
                sender = DestinationSender(node.settings, destination, node.database, node.files)
                while sender.work_once(node.database.now()):
                    pass
            flying.step()
            with node.database.read() as tx:
                (run,) = canaries.latest(tx, 9)
            assert (run.state, run.instance_count) == (CanaryState.PASSED, 40), run.said
            assert problems(node.settings, node.database, node.files, None) == []
    assert clinic.received() == []
    (report,) = [one for one in map(dcmread, place.received()) if one.Modality == "SR"]
    assert (report.PatientID, report.PatientName) == (canaries.PATIENT_ID, canaries.PATIENT_NAME)
    assert report.StudyInstanceUID == run.study_instance_uid

    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(tmp_path / "node"))
    monkeypatch.setenv("DICOM_NODE_CANARY__EVERY_HOURS", "1")
    said = {name: CliRunner().invoke(app, name.split()).output for name in ("canary show", "status", "series list")}
    assert "All is well" in said["canary show"] and "PASSED" in said["canary show"]
    assert "canary      passed at" in said["status"] and "0 analysed" in said["status"]
    assert "(canary)" in said["series list"]
    assert "it is no patient" in CliRunner().invoke(app, ["series", "show", "1"]).output
    shown = json.loads(CliRunner().invoke(app, ["series", "show", "1", "--json"]).output)
    assert shown["canary"] is True and [one["destination"] for one in shown["deliveries"]] == ["place"]
    refused = CliRunner().invoke(app, ["resend", str(shown["result_id"]), "--to", "clinic"])
    assert refused.exit_code != 0
