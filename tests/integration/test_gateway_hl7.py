"""A real result as ORU^R01: read back from the report and from the message it is the same, and it arrives once."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from pydicom import Dataset, dcmread
from typer.testing import CliRunner

from config.errors import ConfigError
from config.gateways.hl7 import PLACEHOLDERS, Hl7Destination
from config.load import load_settings
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.worker import Worker
from dicom_node.cli.app import app
from dicom_node.completion.closing import Completion
from dicom_node.delivery.sender import DestinationSender
from dicom_node.gateways.hl7.field_map import placeholders
from dicom_node.gateways.hl7.gateway import Hl7
from dicom_node.gateways.interface import CannotCompose
from dicom_node.gateways.reading import read_reported
from dicom_node.gateways.reported import Name, ReportedResult
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage import deliveries, results
from tests.mllp_server import mllp_server, wait_for
from tests.outbox import Node, make_node
from tests.reported import example_result

ROOT = Path(__file__).resolve().parents[2]


def ris(port: int = 1, **more: object) -> Hl7Destination:
    return Hl7Destination(kind="hl7", name="ris", host="127.0.0.1", port=port, **more)


def node_with_a_result(folder: Path, slices: list[Dataset], *destinations: Hl7Destination, **more: object) -> Node:
    """A node that has analysed the series with the demonstration model."""
    node = make_node(folder, *destinations, completion={"select": "all"}, **more)
    analyse(node, slices, time.time() - 60)
    return node


def analyse(node: Node, slices: list[Dataset], now: float) -> int:
    """Returns the result's number."""
    node.receive(slices, now, 1.0)
    completion = Completion(node.settings, node.database, node.files)
    completion.close_due_series(current_models(node.settings), now + 2)
    completion.stop()
    assert Worker(node.settings, node.database, node.files, "cpu").work_once(now + 3)
    with node.database.read() as tx:
        return results.latest_of_series(tx, slices[0].SeriesInstanceUID) or 0


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("phantom")
    read = [dcmread(path) for path in write_series(make_phantom(31, slices=40, size=256, lesions="mixed"), folder)]
    for one in read:
        one.PatientID, one.PatientName, one.IssuerOfPatientID = "7|4^7", "O&Neill~|^José^M.^Dr.^Jr.", "HOSPITAL"
        one.SpecificCharacterSet = "ISO_IR 192"
        one.AccessionNumber, one.StudyDate, one.StudyTime = "A-1", "20260102", "101112.5"
        one.TimezoneOffsetFromUTC = "+0100"
    return read


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory, slices: list[Dataset]) -> tuple[Node, ReportedResult, Dataset]:
    """A node with a result, the result as gateways tell it, and its report."""
    node = node_with_a_result(tmp_path_factory.mktemp("node"), slices, ris())
    with node.database.read() as tx:
        (stored, *_) = results.objects_of(tx, 1)
    report = dcmread(io.BytesIO(node.files.read_verified(stored.path, stored.sha256)))
    return node, read_reported(node.database, node.files, 1), report


@pytest.fixture
def waiting(analysed: tuple[Node, ReportedResult, Dataset]) -> Path:
    """The folder of a node whose result has not been sent yet; to be copied."""
    return analysed[0].settings.data_dir


def composed(result: ReportedResult, **settings: object) -> list[list[str]]:
    """The message's segments, each split into its fields."""
    destination = ris(**settings)
    content = Hl7(destination).compose(result).content
    codec = {"UNICODE UTF-8": "utf-8"}.get(destination.character_set, "latin-1")
    return [line.split("|") for line in content.decode(codec).split("\r") if line]


def of(message: list[list[str]], name: str) -> list[list[str]]:
    return [segment for segment in message if segment[0] == name]


def test_the_message_is_one_that_hl7apy_takes_and_says_what_the_report_says(
    analysed: tuple[Node, ReportedResult, Dataset],
) -> None:
    _, result, report = analysed
    content = Hl7(ris()).compose(result).content
    parsed = parse_message(content.decode(), validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)
    assert parsed.validate()
    message = composed(result)
    (pid,), (obr,) = of(message, "PID"), of(message, "OBR")
    assert pid[3] == "7\\F\\4\\S\\7^^^HOSPITAL^MR"
    assert pid[5] == "O\\T\\Neill\\R\\\\F\\^José^M.^Jr.^Dr."
    assert (obr[7], obr[18], obr[25]) == ("20260102101112.5+0100", "A-1", "P")
    observations = {(segment[4], segment[3].split("^")[0]): segment for segment in of(message, "OBX")}
    certainty, finding = observations["1", "111012"], observations["1", "121071"]
    groups = [item for item in report.ContentSequence if item.ValueType == "CONTAINER"]
    (in_report,) = [
        item
        for item in _tree(groups)
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == "111012"
    ][:1]
    measured = in_report.MeasuredValueSequence[0]
    assert certainty[5] == str(getattr(measured.NumericValue, "original_string", measured.NumericValue))
    assert certainty[6] == "%^Percent^UCUM"
    assert (certainty[8], certainty[11], certainty[14]) == ("A", "P", "20260102101112.5+0100")
    assert finding[5] == "840539006^COVID-19^SCT"
    assert observations["1", "363713009"][5] == "10828004^Positive^SCT"
    assert [segment[1] for segment in of(message, "OBX")] == [str(n + 1) for n in range(len(of(message, "OBX")))]
    numbers = {(n.concept.value, n.value, n.unit.value) for n in result.numbers}
    told = {(s[3].split("^")[0], s[5], s[6].split("^")[0]) for s in of(message, "OBX") if s[2] == "NM"}
    assert numbers and numbers <= told
    texts = [segment[5].replace("~", " ") for segment in of(message, "OBX") if segment[2] == "TX"]
    assert texts == list(result.sentences)


def _tree(items: list[Dataset]) -> list[Dataset]:
    return [one for item in items for one in (item, *_tree(list(item.get("ContentSequence", []))))]


def test_the_same_result_gives_the_same_bytes_and_another_another_key(
    analysed: tuple[Node, ReportedResult, Dataset],
) -> None:
    _, result, _ = analysed
    first, again = Hl7(ris()).compose(result), Hl7(ris()).compose(result)
    assert first == again
    assert first.content.decode().split("|")[9] == first.key
    assert re.fullmatch(r"[0-9A-F]{20}", first.key)
    assert Hl7(ris()).compose(replace(result, report_uid="1.2.3")).key != first.key
    elsewhere = ris().model_copy(update={"name": "elsewhere"})
    assert Hl7(elsewhere).compose(result).key != first.key


def test_character_sets_and_names_in_several_scripts(analysed: tuple[Node, ReportedResult, Dataset]) -> None:
    _, result, _ = analysed
    assert of(composed(result, character_set="8859/1"), "PID")[0][5].count("José") == 1
    assert of(composed(result, character_set="8859/1"), "MSH")[0][17] == "8859/1"
    name = Name("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada", "Tarou")
    japanese = replace(result, patient=replace(result.patient, name=name))
    (pid,) = of(composed(japanese), "PID")
    assert pid[5] == "Yamada^Tarou~山田^太郎^^^^^^I~やまだ^たろう^^^^^^P"
    with pytest.raises(CannotCompose, match="PID-5: a character that"):
        composed(japanese, character_set="8859/1")
    escaped = of(composed(japanese, character_set="8859/1", unfit_characters="escape"), "PID")[0][5]
    assert "\\XE5B1B1\\\\XE794B0\\" in escaped


def test_a_site_fills_fields_as_it_needs_them(analysed: tuple[Node, ReportedResult, Dataset]) -> None:
    _, result, _ = analysed
    fields = {
        "PID-3.4": "SITE|1",
        "PID-3.4.2": "1.2.3",
        "PV1-2": "O",
        "OBR-3": "{accession_number}-{result_id}",
        "MSH-16": "",
        "ORC-12.2": "{{{family_name}}}",
    }
    message = composed(result, fields=fields)
    assert [segment[0] for segment in message][:5] == ["MSH", "PID", "PV1", "ORC", "OBR"]
    assert of(message, "PID")[0][3] == "7\\F\\4\\S\\7^^^SITE\\F\\1&1.2.3^MR"
    assert of(message, "PV1")[0] == ["PV1", "1", "O"]
    assert of(message, "OBR")[0][3] == "A-1-1"
    assert of(message, "MSH")[0][14:17] == ["AL", "", ""]
    assert of(message, "ORC")[0][12] == "^{O\\T\\Neill\\R\\\\F\\}"
    assert tuple(placeholders(result)) == PLACEHOLDERS


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("PID3", "x", "'PID3' is not a field such as"),
        ("OBX-5", "x", "OBX-5 is in a segment that cannot be mapped"),
        ("MSH-10", "x", "MSH-10 is set by the node"),
        ("PID-3.4", "{name}", "PID-3.4: {name} is not a placeholder"),
        ("PID-3.4", "{patient_id!r}", "PID-3.4: {patient_id} is not a placeholder"),
        ("PID-3.4", "{patient_id.__class__}", "PID-3.4: {patient_id.__class__} is not a placeholder"),
        ("PID-3.4", "{", "PID-3.4: "),
    ],
)
def test_a_mistake_in_the_field_map_names_the_field_and_the_line(
    tmp_path: Path, field: str, text: str, said: str
) -> None:
    path = tmp_path / "node.toml"
    head = '[[destinations]]\nkind = "hl7"\nname = "ris"\nhost = "ris"\nport = 2575\n'
    path.write_text(f'{head}[destinations.fields]\n"{field}" = "{text}"\n')
    with pytest.raises(ConfigError) as raised:
        load_settings(path)
    assert said in str(raised.value)
    assert re.search(r"destinations\[?.*fields", str(raised.value))


def test_a_later_result_of_the_series_is_a_correction_under_the_same_order_number(
    tmp_path: Path, slices: list[Dataset], analysed: tuple[Node, ReportedResult, Dataset]
) -> None:
    node = node_with_a_result(tmp_path / "node", slices[:-1], ris())
    send_once(node)
    second = analyse(node, slices[-1:], time.time() + 1000)
    result = read_reported(node.database, node.files, second)
    assert result.replaces is not None
    message, before = composed(result), composed(analysed[1])
    assert of(message, "OBR")[0][25] == "C"
    assert {segment[11] for segment in of(message, "OBX")} == {"C", "O"}
    assert of(message, "OBR")[0][3] == of(before, "OBR")[0][3], "by which the receiver finds what is corrected"
    assert of(message, "MSH")[0][9] != of(before, "MSH")[0][9]
    # As if the later one had found that the series cannot be analysed.
    withdrawn = replace(result, analysed=False, findings=(), numbers=(), reason_code="MISSING_SLICES")
    told = [segment[:4] + segment[5:6] + segment[11:12] for segment in of(composed(withdrawn), "OBX")]
    assert ["OBX", "3", "NM", "111012^Certainty of Finding^DCM", "", "W"] in told
    assert ["CWE", "121071^Finding^DCM", "MISSING_SLICES^Missing slices^99DICOMNODE", "C"] in [t[2:] for t in told]


def send_once(node: Node) -> None:
    """As if the destination had it."""
    with node.database.transaction() as tx:
        for one in deliveries.claim(tx, "ris", time.time() + 100, 60, limit=10):
            deliveries.mark_sent(tx, one.delivery_id, one.fence, time.time() + 100)


@pytest.mark.parametrize("told", [True, False])
def test_a_series_that_was_not_analysed_is_told_if_the_site_wants_it(
    tmp_path: Path, slices: list[Dataset], told: bool
) -> None:
    report = {"report_not_analysed": True, "summary": False}
    node = node_with_a_result(tmp_path / "node", slices[:5], ris(not_analysed=told), report=report)
    assert bool(node.deliveries()) is told
    message = composed(read_reported(node.database, node.files, 1))
    (certainty,) = [segment for segment in of(message, "OBX") if segment[3].startswith("111012")]
    assert (certainty[5], certainty[11]) == ("", "X")
    assert parse_message("\r".join("|".join(s) for s in message), validation_level=VALIDATION_LEVEL.STRICT).validate()


def test_it_arrives_once_the_engine_acknowledges_it_and_always_as_the_same_bytes(tmp_path: Path, waiting: Path) -> None:
    shutil.copytree(waiting, tmp_path / "node")
    with mllp_server(tmp_path / "engine") as engine:
        node = make_node(tmp_path / "node", ris(engine.port))
        sender = DestinationSender(node.settings, node.settings.destinations[0], node.database, node.files)
        now = time.time()
        for number, behaviour in enumerate(("hang-up", "another", "garbage", "AE", "AA")):
            engine.behave(behaviour)
            assert sender.work_once(now + 100 * (number + 1))
        assert node.states() == {"ris": "SENT"}
        assert len(engine.messages) == 5 and len(set(engine.messages)) == 1


def test_killed_between_sending_and_acknowledgement_it_comes_twice_with_the_same_key(
    tmp_path: Path, waiting: Path
) -> None:
    shutil.copytree(waiting, tmp_path / "node")
    with mllp_server(tmp_path / "engine", "silent") as engine:
        node = make_node(tmp_path / "node", ris(engine.port))
        environment = {
            **os.environ,
            "DICOM_NODE_DATA_DIR": str(node.settings.data_dir),
            "DICOM_NODE_DESTINATIONS": json.dumps([ris(engine.port).model_dump(mode="json")]),
            "DICOM_NODE_SENDER__LEASE_S": "2",
            "DICOM_NODE_LOGGING__LEVEL": "error",
        }
        command = [sys.executable, "-m", "dicom_node", "deliver"]
        first = subprocess.Popen(command, env=environment)
        engine.await_messages(1)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        engine.behave("CA")
        second = subprocess.Popen(command, env=environment)
        try:
            engine.await_messages(2)
            wait_for(lambda: node.states() == {"ris": "SENT"})
        finally:
            second.terminate()
            second.wait()
        assert len(engine.messages) == 2 and len(set(engine.messages)) == 1


def test_preview_and_the_documents_example(analysed: tuple[Node, ReportedResult, Dataset]) -> None:
    node, result, _ = analysed
    environment = {
        "DICOM_NODE_DATA_DIR": str(node.settings.data_dir),
        "DICOM_NODE_DESTINATIONS": json.dumps([{**ris(character_set="8859/1").model_dump(mode="json")}]),
    }
    shown = CliRunner().invoke(app, ["gateway", "preview", "ris", "1"], env=environment).stdout
    assert shown.strip().splitlines() == ["|".join(segment) for segment in composed(result, character_set="8859/1")]
    page = (ROOT / "docs" / "gateways" / "hl7.md").read_text()
    example = composed(example_result(), receiving_application="RIS")
    stated = page.partition("<!-- example -->\n")[2].partition("\n<!-- end -->")[0]
    assert stated.splitlines() == ["    " + "|".join(segment) for segment in example]
    for name in PLACEHOLDERS:
        assert f"`{{{name}}}`" in page, name
