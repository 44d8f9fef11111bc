"""The conformance statement is held to a running node: what it lists is done, and what it does not list is not."""

import ast
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from sqlalchemy import update
from typer.testing import CliRunner

from config.gateways.worklist import WorklistEntry
from config.settings import SenderSettings, Settings
from dicom_node import statuses
from dicom_node.cli.app import app
from dicom_node.completion.retrieve import Keeper, Retrieval, Wanted, retrieve
from dicom_node.conformance import as_pdf
from dicom_node.conformance.as_html import html
from dicom_node.conformance.as_markdown import markdown
from dicom_node.conformance.document import Document, Section, Table, numbered, section, table
from dicom_node.conformance.receiver_ae import receiver_ae
from dicom_node.conformance.sender_ports import LARGEST_PDU
from dicom_node.conformance.services import network_services, web_services
from dicom_node.conformance.statement import statement
from dicom_node.conformance.walked import names_in
from dicom_node.delivery.commitment import Asking
from dicom_node.delivery.commitment_listener import CommitmentListener
from dicom_node.errors import NodeError
from dicom_node.gateways.worklist.dimse import DimseWorklist
from dicom_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.performer.events import EventListener
from dicom_node.receiver import access, pdu
from dicom_node.receiver.errors import ReceiverError, Refused, answer_for
from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.lower_classes import in_lower_classes
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.sources import read_sources
from dicom_node.scu.association import Address
from dicom_node.scu.query import SeriesKey, querying
from dicom_node.scu.store import echo, read_instance
from dicom_node.scu.store import store as send
from dicom_node.web.dicomweb.offered import STATUSES
from storage import workitems
from storage.commitments import Commitment
from storage.errors import DatabaseBusy, StorageError, StorageFull
from storage.models import deliveries
from storage.object_kinds import ObjectKind
from storage.pseudonyms import Pseudonyms
from tests.factories import Grid, finding_on, lesion, volume_of, write_enhanced, write_series
from tests.outbox import Node as OutboxNode
from tests.outbox import destination, make_node
from tests.programs import free_port
from tests.receiving import Node, associate, ct_slice, store

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = ("ct", "enhanced-ct", "legacy-enhanced-ct", "results", "rejections")
SOURCES: list[dict[str, Any]] = [
    {"ae_title": "SENDER", "addresses": ["127.0.0.1"]},
    {"ae_title": "ROUTER", "addresses": ["127.0.0.1"], "classes": EVERYTHING},
]
CALLER = SenderSettings(calling_ae_title="NODE_SC", response_timeout_s=20, connect_timeout_s=5)
MODEL, MODEL_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
UPS_PUSH, UPS_EVENT = "1.2.840.10008.5.1.4.34.6.1", "1.2.840.10008.5.1.4.34.6.4"
Made = list[tuple[ObjectKind, Dataset]]


@pytest.fixture(scope="module")
def defaults() -> Document:
    """The statement of the default settings."""
    return statement(Settings.model_construct())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A receiver with two sources, one of which may store everything."""
    with Node(tmp_path_factory.mktemp("node"), {"max_pdu_bytes": 54321}, sources=SOURCES) as running:
        yield running


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """Objects of every kind, of other images than the statement's: of single frames, and of a multi-frame instance."""
    folder = tmp_path_factory.mktemp("images")
    write_series(folder / "classic")
    context = ReportContext(created_at=datetime(2026, 3, 1, 12, tzinfo=UTC), institution="Somewhere")
    return [
        build_all(finding_on(volume, localisation=lesion(Grid())), volume, read_sources(volume), context, KINDS)
        for volume in (volume_of(folder / "classic"), write_enhanced(folder / "multi.dcm"))
    ]


def tables(sections: Sequence[Section], *path: str) -> list[Table]:
    """The tables of the section under these titles, each of which may be a title's beginning."""
    found = next(one for _, one in numbered(sections) if one.title.startswith(path[0]))
    if len(path) > 1:
        return tables(found.subsections, *path[1:])
    return [block for block in found.blocks if isinstance(block, Table)]


# What the receiver accepts.


@pytest.mark.parametrize("sender", ["SENDER", "ROUTER"])
def test_of_all_uids_of_the_standard_the_receiver_accepts_those_of_its_statement_alone(node: Node, sender: str) -> None:
    said = receiver_ae(node.settings)
    stated = {
        (row[1], row[3])
        for activity in ("Verify", "Store images")
        for row in tables([said], "Association Acceptance Policy", activity, "Accepted Presentation Contexts")[0].rows
        if sender in row[-1].split(", ")
    }
    known = {kind: [uid for uid, entry in UID_dictionary.items() if entry[1] == kind] for kind in (CLASS, SYNTAX)}
    classes = {abstract for abstract, _ in stated}
    assert classes < {*known[CLASS]} and {syntax for _, syntax in stated} < {*known[SYNTAX]}
    pairs = [(abstract, [syntax]) for abstract in sorted(classes) for syntax in known[SYNTAX]]
    # No class but these, in none of the syntaxes that others are accepted in.
    named = sorted({syntax for _, syntax in stated})
    pairs += [(abstract, named) for abstract in known[CLASS] if abstract not in classes]
    answered = propose(node, sender, pairs)
    accepted = {(uid, syntaxes[0]) for (uid, syntaxes), result in zip(pairs, answered, strict=True) if result == 0}
    assert accepted == stated
    refused = {(uid in classes, result) for (uid, _), result in zip(pairs, answered, strict=True) if result != 0}
    assert refused == {(True, 4), (False, 3)}, "transfer syntaxes, or abstract syntax, not supported"


CLASS, SYNTAX = "SOP Class", "Transfer Syntax"


def propose(node: Node, sender: str, pairs: Sequence[tuple[str, list[str]]]) -> list[int]:
    """The results of these presentation contexts, 128 to an association."""
    results: list[int] = []
    for start in range(0, len(pairs), 128):
        entity = AE(ae_title=sender)
        contexts = [build_context(uid, syntaxes) for uid, syntaxes in pairs[start : start + 128]]
        association = entity.associate("127.0.0.1", node.port, contexts, "DICOM_NODE")
        answered = sorted(
            (*association.accepted_contexts, *association.rejected_contexts), key=lambda c: c.context_id or 0
        )
        results += [int(one.result or 0) for one in answered]
        if association.is_established:
            association.release()
    return results


def test_the_receiver_announces_the_pdu_and_the_implementation_that_the_statement_names(node: Node) -> None:
    said = receiver_ae(node.settings)
    stated = dict(tables([said], "Association Policies", "General")[0].rows)
    named = dict(tables([said], "Association Policies", "Implementation")[0].rows)
    with associate(node) as association:
        announced = association.acceptor
        assert str(announced.maximum_length) == stated["Largest PDU that is taken, bytes"] == "54321"
        assert announced.implementation_class_uid == named["Implementation Class UID"]
        assert announced.implementation_version_name == named["Implementation Version Name"]


# Statuses.


def returned(service: str) -> set[int]:
    return {one.status for one in statuses.RETURNED[service]}


def test_every_status_of_c_store_and_c_echo_is_answered(tmp_path: Path) -> None:
    with Node(tmp_path) as alone:
        another = ct_slice()
        another.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        unreadable = ct_slice()
        unreadable.SeriesInstanceUID = ""
        seen = {status for status, _ in store(alone, ct_slice(), another, unreadable)}
        with associate(alone) as association:
            assert {association.send_c_echo().Status} == returned("C-ECHO")
        with associate(alone) as association:
            alone.fill_disk()
            seen.add(association.send_c_store(ct_slice()).Status)
    assert seen == returned("C-STORE")


def test_every_status_of_a_retrieval_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, other = ct_slice(), ct_slice()
    with Node(tmp_path) as alone:
        key = SeriesKey("", wanted.StudyInstanceUID, wanted.SeriesInstanceUID)
        retrieval = Retrieval(key, {wanted.SOPInstanceUID}, frozenset(), None, 1.0, "DICOM_NODE", Pseudonyms(""))
        peer = Address("PACS", "127.0.0.1", 104)
        keeper = Keeper(peer, CALLER, retrieval, alone.database, alone.files, time.time)
        seen = {keep(keeper, wanted), keep(keeper, other)}
        monkeypatch.setattr(alone.files, "write_durably", raising(StorageFull("full")))
        seen.add(keep(keeper, wanted))
    assert seen == returned("C-STORE sub-operation of C-GET")


def keep(keeper: Keeper, one: Dataset) -> int:
    encoded = to_part10(one)
    start = encoded.index(b"\x08\x00", 132 + 12)
    return keeper.keep(encoded[start:], one.SOPClassUID, str(one.file_meta.TransferSyntaxUID))


def raising(error: Exception) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


def test_every_status_at_the_commitment_port_is_answered(tmp_path: Path) -> None:
    port = free_port()
    commitment = {"ae_title": "NODE_SC", "port": port}
    asked = destination(1, "pacs", ae_title="PACS", commitment="request")
    outbox = make_node(tmp_path, asked, sender={"commitment": commitment})
    transaction = committing(outbox)
    listener = CommitmentListener(outbox.settings, outbox.database)
    listener.start()
    try:
        with calling("PACS", port, "NODE_SC", MODEL) as association:
            status, _ = association.send_n_action(references(generate_uid()), 1, MODEL, MODEL_INSTANCE)
            assert {status.Status} == returned("N-ACTION (storage commitment)")
            seen = set()
            for uid, kind in ((generate_uid(), 1), (transaction, 7), (transaction, 1)):
                answer, _ = association.send_n_event_report(references(uid), kind, MODEL, MODEL_INSTANCE)
                seen.add(answer.Status)
    finally:
        listener.stop()
    assert seen == returned("N-EVENT-REPORT (storage commitment)")


def references(transaction: str) -> Dataset:
    information = Dataset()
    information.TransactionUID, information.ReferencedSOPSequence = transaction, []
    return information


def committing(outbox: OutboxNode) -> str:
    """A delivery that was sent, and is asked about under this transaction."""
    outbox.add_result(time.time())
    transaction = generate_uid()
    with outbox.database.transaction() as tx:
        tx.execute(update(deliveries).values(state="SENT", commitment_uid=transaction))
    return transaction


@contextmanager
def calling(calling_ae: str, port: int, called_ae: str, *classes: str) -> Iterator[Association]:
    entity = AE(ae_title=calling_ae)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    association = entity.associate("127.0.0.1", port, [build_context(uid) for uid in classes], called_ae)
    assert association.is_established
    assert association.acceptor.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    assert f"{association.acceptor.maximum_length}." in LARGEST_PDU
    agreed = {str(one.transfer_syntax[0]) for one in association.accepted_contexts}
    assert agreed <= {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
    yield association
    association.release()


def test_every_status_at_a_worklists_event_port_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = WorklistEntry(
        name="ris", ae_title="WORKLIST", host="127.0.0.1", port=1, label="CHEST-AI", event_port=free_port()
    )
    outbox = make_node(tmp_path, worklists=(entry,))
    listener = EventListener(outbox.settings, entry, outbox.database, lambda: None, time.time)
    listener.start()
    title, uid, event = outbox.settings.sender.calling_ae_title, generate_uid(), Dataset()
    event.ProcedureStepState = "SCHEDULED"
    try:
        with calling("WORKLIST", entry.event_port, title, UPS_EVENT) as told:
            seen = {tell(told, event, 1, uid), tell(told, event, 9, uid)}
            monkeypatch.setattr(workitems, "ask_to_cancel", raising(DatabaseBusy("busy")))
            seen.add(tell(told, event, 2, uid))
            asked = {
                told.send_n_action(event, 1, UPS_PUSH, uid, meta_uid=UPS_EVENT)[0].Status,
                told.send_n_create(event, UPS_PUSH, uid, meta_uid=UPS_EVENT)[0].Status,
                told.send_n_get([], UPS_PUSH, uid, meta_uid=UPS_EVENT)[0].Status,
                told.send_n_set(event, UPS_PUSH, uid, meta_uid=UPS_EVENT)[0].Status,
                *(response.Status for response, _ in told.send_c_find(event, UPS_EVENT)),
            }
    finally:
        listener.stop()
    assert seen == returned("N-EVENT-REPORT (unified procedure step)")
    assert asked == returned("N-ACTION, N-CREATE, N-GET, N-SET, C-FIND (unified procedure step)")


def tell(association: Association, event: Dataset, kind: int, uid: str) -> int:
    return int(association.send_n_event_report(event, kind, UPS_PUSH, uid, meta_uid=UPS_EVENT)[0].Status)


def test_no_error_of_the_program_is_answered_with_a_status_that_the_statement_lacks() -> None:
    errors = [*below(ReceiverError), *below(StorageError), OSError, ValueError]
    assert {answer_for(kind("x"))[0] for kind in errors} <= returned("C-STORE")
    assert {kind.status for kind in below(Refused)} <= returned("C-STORE")


def below(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(one for child in kind.__subclasses__() for one in below(child))]


def test_statuses_are_numbers_in_their_table_only() -> None:
    """A number of its own, somewhere in the program, would be a status that the statement does not know."""
    known = {value for name, value in vars(statuses).items() if name.isupper() and isinstance(value, int)} - {0}
    # Tables of what others answer; the command set's element numbers; the demonstration's PACS, which is no node.
    elsewhere = {"statuses.py", "scu/store.py", "gateways/worklist/interface.py", "receiver/pdu.py", "demo/pacs.py"}
    package = ROOT / "dicom_node"
    digits = re.compile("|".join(f"0x0*{value:x}|{value}" for value in known), re.IGNORECASE)
    sources = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    found = [
        f"{name}:{one.lineno}"
        for name, source in sources.items()
        if name not in elsewhere and digits.search(source)
        for one in ast.walk(ast.parse(source))
        if isinstance(one, ast.Constant) and type(one.value) is int and one.value in known
    ]
    assert found == []


def test_every_rejection_and_abort_of_the_program_is_in_the_statements_tables() -> None:
    sources = [ast.parse(path.read_text()) for path in (ROOT / "dicom_node" / "receiver").glob("*.py")]
    calls = [one for source in sources for one in ast.walk(source) if isinstance(one, ast.Call) and one.args]
    names = {ast.unparse(one.args[0]).rpartition(".")[2] for one in calls if ast.unparse(one.func) == "Rejection"}
    assert {getattr(access, name) for name in names} == access.REJECTIONS.keys()
    errors = [one.args for one in calls if ast.unparse(one.func) == "ProtocolError"]
    reasons = {getattr(pdu, ast.unparse(args[1]).rpartition(".")[2]) for args in errors if len(args) > 1}
    assert reasons | {0} == {reason for _, reason in pdu.ABORTS}


def test_the_dicomweb_server_answers_with_no_status_that_the_statement_lacks() -> None:
    sources = [path.read_text() for path in (ROOT / "dicom_node" / "web" / "dicomweb").glob("*.py")]
    calls = [one for source in sources for one in ast.walk(ast.parse(source)) if isinstance(one, ast.Call)]
    answers = [
        one for one in calls if getattr(one.func, "id", "") in ("HTTPException", "PlainTextResponse", "Response")
    ]
    values = [value for one in answers for value in (*one.args, *(keyword.value for keyword in one.keywords))]
    found = {one.value for one in values if isinstance(one, ast.Constant) and type(one.value) is int}
    assert found and found <= STATUSES.keys()


# What the sender proposes.


class Recorder:
    """An SCP that notes what is proposed to it, and accepts none of it."""

    def __init__(self) -> None:
        self.proposed: list[Association] = []
        self._entity = AE(ae_title="RECORDER")
        self._entity.add_supported_context("1.2.3.4")
        handlers: list[evt.EventHandlerType] = [(evt.EVT_REQUESTED, self._note)]
        self._server = self._entity.start_server(("127.0.0.1", 0), False, evt_handlers=handlers)
        self.peer = destination(int(self._server.server_address[1]), "pacs", ae_title="RECORDER", commitment="request")

    def _note(self, event: evt.Event) -> None:
        self.proposed.append(event.assoc)

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()

    def during(self, work: Callable[[], Any]) -> list[tuple[str, str, str]]:
        """What is proposed while this is done: class, transfer syntax, role."""
        before = len(self.proposed)
        try:
            work()
        except NodeError:
            pass
        found = []
        for association in self.proposed[before:]:
            requestor = association.requestor
            assert requestor.implementation_class_uid == IMPLEMENTATION_CLASS_UID
            assert requestor.implementation_version_name == IMPLEMENTATION_VERSION_NAME
            assert requestor.maximum_length == 131072
            assert requestor.asynchronous_operations == (1, 1) and requestor.user_identity is None
            assert not requestor.sop_class_extended and not requestor.sop_class_common_extended
            roles = {uid for uid, one in requestor.role_selection.items() if one.scp_role}
            found += [
                (str(one.abstract_syntax), str(syntax), "SCP" if one.abstract_syntax in roles else "SCU")
                for one in requestor.requested_contexts
                for syntax in one.transfer_syntax
            ]
        return found


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.stop()


def test_what_the_sender_proposes_is_what_the_statement_lists(
    tmp_path: Path, recorder: Recorder, defaults: Document, results: list[Made]
) -> None:
    outbox = make_node(tmp_path, recorder.peer)
    key = SeriesKey("", "2.25.1", "2.25.2")
    worklist = DimseWorklist(recorder.peer, CALLER, "label", (), ())
    asking = Asking(outbox.settings, recorder.peer, outbox.database, outbox.files)
    committing = Commitment(1, "pacs", 0, 0, None, "", "2.25.1", ())
    work: dict[str, Callable[[], Any]] = {
        "Verify a peer": lambda: echo(recorder.peer, CALLER),
        "Send results": lambda: send(
            recorder.peer, CALLER, list(map(read_instance, written(tmp_path / "made", results[0])))
        ),
        "Ask for storage commitment": lambda: asking._request(committing, "2.25.3", time.time),
        "Query a PACS": lambda: querying(recorder.peer, CALLER).__enter__(),
        "Retrieve by C-GET": lambda: fetching(recorder, key, None),
        "Retrieve by C-MOVE": lambda: fetching(recorder, key, "DICOM_NODE"),
        "Perform steps of a worklist": lambda: worklist.scheduled(1),
        "Subscribe to a worklist's events": worklist.subscribe,
    }
    title = "Association Initiation Policy"
    (initiation,) = [one for _, one in numbered(defaults.sections) if one.title == title and one.subsections]
    assert [one.title for one in initiation.subsections] == list(work)
    for activity, done in work.items():
        (contexts,) = tables(initiation.subsections, activity, "Proposed Presentation Contexts")
        stated = [(row[1], row[3], row[4]) for row in contexts.rows]
        assert sorted(recorder.during(done)) == sorted(stated), activity


def fetching(recorder: Recorder, key: SeriesKey, move_to: str | None) -> None:
    wanted = Wanted(key, {"2.25.9"}, frozenset())
    retrieve(recorder.peer, CALLER, wanted, lambda _: 0, lambda: 0, move_to=move_to)


def written(folder: Path, made: Sequence[tuple[str, Dataset]]) -> list[Path]:
    """The objects in files, and the report in its lower classes."""
    folder.mkdir()
    lower = in_lower_classes(to_part10(made[0][1]))
    for number, (_, one) in enumerate([*made, *lower]):
        (folder / f"{number}.dcm").write_bytes(to_part10(one))
    return sorted(folder.glob("*.dcm"))


# What the objects hold.


def test_a_result_holds_no_attribute_that_the_statement_lacks(results: list[Made], defaults: Document) -> None:
    for kind, made in (pair for one in results for pair in one):
        title = next(one.title for _, one in numbered(defaults.sections) if one.title.endswith(f"({kind})"))
        (stated,) = tables(defaults.sections, title)
        assert names_in(made) - {row[1] for row in stated.rows} == set(), kind
        assert made.Modality in {row[-1] for row in stated.rows if row[1] == "Modality"}


# The document.


def test_the_statement_of_the_defaults_in_the_documents_is_current(defaults: Document) -> None:
    assert markdown(defaults) == (ROOT / "docs" / "conformance.md").read_text(), "see CONTRIBUTING.md"


def test_every_numbered_section_says_something(defaults: Document) -> None:
    empty = [f"{number} {one.title}" for number, one in numbered(defaults.sections) if not one.blocks]
    assert empty == []


def test_what_a_site_turns_on_is_marked_on_and_nothing_inside_is_told() -> None:
    settings = Settings(
        sources=SOURCES,
        destinations=[
            {"name": "pacs", "ae_title": "PACS", "host": "10.0.0.1", "port": 104, "commitment": "request"},
            {"name": "web", "kind": "stow", "url": "https://pacs.example/rs", "auth": "basic", "user": "INSIDE-1",
             "credentials": "/INSIDE-2"},
        ],
        completion={"query_destination": "pacs", "retrieve": "move"},
        storage={"pseudonym_key": "INSIDE-3-1234567890", "database_url": "postgresql+psycopg://INSIDE-4@h/d"},
        worklists=[{"name": "ris", "ae_title": "RIS", "host": "10.0.0.2", "port": 104, "label": "CT"}],
        receiver={"plain": False, "users": {"INSIDE-5": "INSIDE-6"}, "tls_key": "/INSIDE-7",
                  "tls_certificate": "/INSIDE-8", "tls_authorities": "/INSIDE-9"},
    )  # fmt: skip
    on = {(one.name, one.role) for one in (*network_services(settings), *web_services(settings)) if one.on}
    off = {(one.name, one.role) for one in (*network_services(settings), *web_services(settings)) if not one.on}
    assert {role for name, role in on if name == "Segmentation Storage"} == {"SCP", "SCU"}
    assert ("Storage Commitment Push Model SOP Class", "SCU") in on and ("Store (STOW-RS)", "user agent") in on
    models = {name.rpartition(" - ")[2]: name for name, _ in (*on, *off) if name.startswith("Study Root")}
    assert (models["MOVE"], "SCU") in on and (models["GET"], "SCU") in off and (models["FIND"], "SCU") in on
    assert ("Unified Procedure Step - Pull SOP Class", "SCU") in on
    assert {name for name, _ in off} > {"Unified Procedure Step - Watch SOP Class", "Worklist (UPS-RS)"}
    said = markdown(statement(settings))
    assert "10.20.30.40" not in said and "10.0.0.2:104" in said and "the settings of one installation" in said
    assert "INSIDE" not in said


def test_a_table_survives_what_markdown_and_html_take_for_marks() -> None:
    said = Document("T", ("C",), (section("S", table("A|B", [("a|b", "<b> *x* [y] a_b _z_")])),))
    assert r"| a\|b | \<b\> \*x\* [y] a_b \_z\_ |" in markdown(said)
    assert "<td>a|b</td><td>&lt;b&gt; *x* [y] a_b _z_</td>" in html(said)


def test_the_command_writes_each_form(tmp_path: Path, defaults: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.conformance.statement.statement", lambda settings: defaults)
    runner, page = CliRunner(), tmp_path / "statement.html"
    assert runner.invoke(app, ["conformance", "--format", "html", "--output", str(page)]).exit_code == 0
    assert page.read_text() == html(defaults)
    assert runner.invoke(app, ["conformance"]).stdout_bytes.decode() == markdown(defaults)
    monkeypatch.setattr(as_pdf, "find_spec", lambda _: None)
    with pytest.raises(NodeError, match=r"pip install 'dicom-node\[pdf\]'"):
        as_pdf.pdf(defaults)


def test_a_pdf_has_every_section(defaults: Document) -> None:
    pytest.importorskip("reportlab")
    small = Document(defaults.title, defaults.cover, (*defaults.sections[:3], *defaults.sections[4:6]))
    written = as_pdf.pdf(small)
    assert written.startswith(b"%PDF-") and written == as_pdf.pdf(small), "the same statement is the same file"
    assert len(re.findall(rb"/Type /Page\b", written)) >= 4
