"""The audit trail as audit messages: which event becomes what, nothing lost, nothing out of order, little gathered."""

import ast
import json
import re
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from config.gateways.audit_messages import SyslogSettings
from config.load import read
from config.settings import Settings
from dicom_node.gateways.audit_messages import folding, forwarder, message, syslog
from dicom_node.gateways.audit_messages.forwarder import Forwarder
from dicom_node.gateways.audit_messages.syslog import NotTaken
from dicom_node.gateways.audit_messages.table import NO_COUNTERPART, TABLE
from dicom_node.gateways.audit_messages.telling import Teller
from storage import (
    audit,
    audit_archive,
    batches,
    canaries,
    deliveries,
    forwarding,
    job_state,
    pauses,
    series_state,
    workitems,
)
from storage.audit import Peer, Subject
from storage.errors import CorruptFile
from tests.storage_factory import Store
from tests.syslog_receivers import Socket, body, invalid, receiver

ROOT = Path(__file__).resolve().parents[2]
CT, SCANNER = "1.2.840.10008.5.1.4.1.1.2", Peer("CT", "10.0.0.7")
TRANSFERRED, ACCESSED, LOG_USED, ALERT, APPLICATION = "110104", "110103", "110101", "110113", "110100"


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


@pytest.fixture
def repository():
    with receiver() as made:
        yield made


def settings(store: Store, port: int, **more: object) -> Settings:
    given = {"host": "127.0.0.1", "port": port, "tls": False, "from_the_beginning": True, "timeout_s": 2, **more}
    destination = {"name": "pacs", "ae_title": "PACS", "host": "10.0.0.9", "port": 104}
    return Settings(
        data_dir=store.folder,
        storage={"database_url": store.url},
        audit={"syslog": given},
        destinations=[destination],
    )


def forward(store: Store, repository: Socket, now: float, *, last: bool = False, at_once: int = 2000, **more: object):
    """Tell everything that can be told at a time."""
    made = Forwarder(settings(store, repository.port, **more), store.database, at_once)
    made._alone = True  # on PostgreSQL too, the one before it is gone, and its lease need not be waited for
    while made.step(now, last=last):
        pass
    return made


def note(store: Store, event: str, now: float, about: Subject = audit.NOTHING, **how: object) -> None:
    with store.database.transaction() as tx:
        audit.append(tx, now, event, about, **how)


def place(store: Store) -> forwarding.Place:
    with store.database.read() as tx:
        return forwarding.place(tx)


# What the program writes, and the table.


def written_events() -> set[str]:
    """Every event name that the program can write: literals that look like one, and those that it puts together."""
    subjects = {event.partition(".")[0] for event in (*TABLE, *NO_COUNTERPART)}
    looks_like = re.compile(rf"({'|'.join(subjects)})\.[a-z][a-z_-]+")
    found = {"node.configuration-refused", "web.login", "web.login-refused", "operator.read"}
    for file in (*(ROOT / "dicom_node").rglob("*.py"), *(ROOT / "storage").glob("*.py")):
        if "audit_messages" in file.parts:
            continue
        for one in ast.walk(ast.parse(file.read_text())):
            if isinstance(one, ast.Constant) and isinstance(one.value, str) and looks_like.fullmatch(one.value):
                found.add(one.value)
            if isinstance(one, ast.Call) and ast.unparse(one.func) == "note_operator":
                found.add(f"operator.{ast.literal_eval(one.args[1])}")
    machines = {
        "series": series_state,
        "job": job_state,
        "delivery": deliveries,
        "batch": batches,
        "workitem": workitems,
        "canary": canaries,
    }
    for entity, module in machines.items():
        found |= {f"{entity}.{state.lower()}" for state in module.TRANSITIONS}
    found |= {f"{kind}.{what}" for kind in pauses.Pausable for what in ("paused", "resumed")}
    return found


# The second words of literals that look like events and are files, columns or settings.
NO_VERBS = {
    "html",
    "csv",
    "db",
    "json",
    "head",
    "id",
    "host",
    "port",
    "key",
    "toml",
    "dicomweb",
    "syslog",
    "unfinished",
    "forwarded",
}


def test_every_event_that_the_program_writes_has_a_message_or_a_reason_why_not():
    written = {event for event in written_events() if event.partition(".")[2] not in NO_VERBS}
    assert written - TABLE.keys() - NO_COUNTERPART.keys() == set()
    assert (TABLE.keys() | NO_COUNTERPART.keys()) - written == set(), "events that nobody writes"
    assert TABLE.keys() & NO_COUNTERPART.keys() == set()


def test_every_place_that_writes_the_trail_gives_an_event_that_the_search_for_events_sees():
    """An event that is put together in a new way must be added to `written_events`."""
    built = set()
    for file in (*(ROOT / "dicom_node").rglob("*.py"), *(ROOT / "storage").glob("*.py")):
        for one in ast.walk(ast.parse(file.read_text())):
            if isinstance(one, ast.Call) and ast.unparse(one.func) in ("audit.append", "trail.append"):
                event = one.args[2]
                if not isinstance(event, ast.Constant):
                    built.add(f"{file.relative_to(ROOT)}: {ast.unparse(event)}")
    assert built == {
        "dicom_node/cli/audit.py: VERIFIED",
        "dicom_node/cli/common.py: f'operator.{action}'",
        "dicom_node/delivery/commitment_listener.py: note.event",
        "dicom_node/receiver/committer.py: note.event",
        "dicom_node/runtime/supervisor.py: f'node.{event}'",
        "dicom_node/web/pages/login.py: f'web.{what}'",
        "dicom_node/web/security/audited.py: event",
        "storage/copies.py: 'instance.same-image' if difference is None else 'instance.conflict'",
        "storage/deliveries.py: event",
        "storage/examinations.py: COMPARED",
        "storage/notifications.py: event",
        "storage/moves.py: f'{machine.entity}.{to.lower()}'",
        "storage/orphans.py: event",
        "storage/pauses.py: f'{kind}.paused'",
        "storage/pauses.py: f'{kind}.resumed'",
        "storage/recording.py: event",
        "storage/selection.py: 'study.decided' if choice.chosen is None else 'study.series-chosen'",
    }


def test_every_message_is_of_the_standards_grammar(store, repository, tmp_path, shared):
    store.reported("pacs", now=0)
    nasty = "a\"<&>'\x01\x1f\ud7ff\ufffe é " + "x" * 500
    everything = Subject("1.2.3", "1.2", "1.2.3.1", nasty, 1, 1)
    for number, event in enumerate(TABLE):
        detail = {
            "user": nasty,
            "destination": "pacs",
            "from": "SENDING",
            "reason": nasty,
            "times": 3,
            "patient_data": True,
        }
        about = everything if number % 2 else Subject(study_uid="1.02.no-oid")
        note(store, event, 100 + number, about, peer=Peer(nasty, "10.0.0.7"), outcome="ANALYSED", detail=detail)
        note(store, event, 100 + number)
    forward(store, repository, 1e6, last=True, site_id="SITE", byte_order_mark=True)
    told = {event for event, _ in repository.told}
    assert told == {kind.event.value for kind in TABLE.values()}
    assert invalid(repository.messages, tmp_path, shared / "data" / "audit-message.rnc") == ""


def test_no_message_is_longer_than_a_receiver_has_to_take(store, repository):
    """Every text as long as it can be, of characters that take five octets in XML."""
    wide = "&" * 100_000
    classes = [f"1.2.840.{number}" for number in range(100)]
    one = folding.Transfer("instance.received", ("C", "0"), "1.2", wide, wide, wide, 1, 0.0, 9, "f" * 64, 1.0, 500)
    for number, uid in enumerate(classes):
        one.add({"id": number, "hash": "f" * 64, "at": 1, "series_uid": uid, "sop_uid": uid}, 1, lambda uid: uid)
    note(store, "web.download", 1, Subject("1.2.3", "1.2", "1.2", wide), peer=Peer(wide, wide), detail={"user": wide})
    note(store, "association.rejected", 1, peer=Peer(wide, wide), detail={"reason": wide, "status": wide})
    forward(store, repository, 1e6, last=True, source_id="S" * 64)
    with store.database.read() as tx:
        long = Teller(settings(store, 1), wide, tx).transfer(one)
    assert max(len(long), *(len(text.encode()) for text in repository.messages)) < message.LONGEST
    with pytest.raises(ValueError, match="octets"):
        syslog.framed(settings(store, 1).audit.syslog, "host", 0, b"x" * message.LONGEST)


def test_the_header_is_rfc_5424s(store, repository):
    note(store, "node.started", 1_764_421_200.5)
    forward(store, repository, 1_764_421_201, app_name="ainode", message_id="DICOM+RFC3881")
    assert re.match(
        r"<85>1 2025-11-29T13:00:00\.500Z \S+ ainode - DICOM\+RFC3881 - <\?xml version", repository.messages[0]
    )
    assert 'EventDateTime="2025-11-29T13:00:00.500Z"' in repository.messages[0]


def test_a_message_says_who_did_what_to_whom(store, repository):
    store.receive(1, now=0)
    about = Subject("1.2.3", "1.2", patient_id="P1")
    note(store, "delivery.sent", 1, about, outcome="SENT", detail={"destination": "pacs"})
    note(store, "web.read", 2, about, peer=Peer(address="10.1.1.1"), detail={"user": "mueller", "page": "series"})
    note(store, "web.read", 3, peer=Peer(address="10.1.1.1"), detail={"user": "mueller", "page": "audit"})
    forward(store, repository, 4)
    sent, looked, log = (body(one) for one in repository.messages[:3])
    assert 'UserID="DICOM_NODE" AlternativeUserID="AETITLES=DICOM_NODE" UserIsRequestor="true"' in sent
    assert 'UserID="pacs" AlternativeUserID="AETITLES=PACS" UserIsRequestor="false" ' in sent
    assert 'NetworkAccessPointID="10.0.0.9" NetworkAccessPointTypeCode="2"' in sent
    assert 'ParticipantObjectID="1.2"' in sent
    assert 'ParticipantObjectID="P1"' in sent
    assert f'<SOPClass UID="{CT}"' in sent
    assert 'EventActionCode="C"' in sent
    assert 'UserID="mueller" UserIsRequestor="true" NetworkAccessPointID="10.1.1.1"' in looked
    assert '<EventID csd-code="110103"' in looked
    assert '<EventID csd-code="110101"' in log


# Gathering.


def test_instances_of_one_study_in_one_association_are_one_message(store, repository):
    store.receive(*range(1, 41), now=0)
    store.receive(*range(1, 11), now=1, series_uid="1.2.4")
    store.receive(1, now=2, series_uid="9.3", study_uid="9.2", patient_id="P9")
    note(store, "association.released", 3, peer=Peer("CT", "127.0.0.1"), outcome="RELEASED")
    forward(store, repository, 3)
    found = [one for one in repository.messages if f'csd-code="{TRANSFERRED}"' in one]
    assert [re.findall(r'NumberOfInstances="(\d+)"', one) for one in found] == [["50"], ["1"]]
    assert [re.findall(r'ParticipantObjectID="(P\d)"', one) for one in found] == [["P1"], ["P9"]]
    assert place(store).gathered == ()


def test_a_transfer_without_an_end_is_told_once_it_is_quiet_and_survives_a_restart(store, repository):
    store.receive(1, 2, now=100)
    forward(store, repository, 101, gather_s=60)
    assert TRANSFERRED not in dict(repository.told)
    store.receive(3, now=110)
    forward(store, repository, 120, gather_s=60)  # another process: it knows only what the index keeps
    assert TRANSFERRED not in dict(repository.told)
    forward(store, repository, 171, gather_s=60)
    assert [one for one in repository.messages if 'NumberOfInstances="3"' in one]
    forward(store, repository, 500, gather_s=60)
    assert sum(event == TRANSFERRED for event, _ in repository.told) == 1


def test_what_is_gathered_is_bounded_however_many_studies_come_at_once(store, repository):
    for number in range(folding.MOST_OPEN + 50):
        about = Subject(f"1.{number}.1", f"1.{number}", f"1.{number}.1.1", f"P{number}")
        note(store, "instance.received", number / 1000, about, peer=SCANNER)
    forward(store, repository, 1, gather_s=60)
    assert len(place(store).gathered) == folding.MOST_OPEN
    assert sum(event == TRANSFERRED for event, _ in repository.told) == 50


def test_a_transfer_that_never_ends_is_told_piece_by_piece(store, repository, monkeypatch):
    monkeypatch.setattr(folding, "MOST_INSTANCES", 10)
    store.receive(*range(1, 26), now=0)
    forward(store, repository, 0, last=True)
    found = [re.findall(r'NumberOfInstances="(\d+)"', one) for one in repository.messages]
    assert [int(one[0]) for one in found if one] == [10, 10, 5]


# Nothing lost, nothing out of order.


def test_rows_are_told_in_their_order_and_each_once(store, repository):
    for number in range(25):
        note(store, "node.started", number)
    forward(store, repository, 30, at_once=10, head_hours=1000)
    assert [row for event, row in repository.told if event == APPLICATION] == list(range(1, 26))


def test_a_receiver_that_dies_in_the_middle_gets_everything_again_from_where_it_said_it_had_read(store, repository):
    for number in range(30):
        note(store, "node.started", number)
    repository.resets_after = 5
    with pytest.raises(NotTaken):
        forward(store, repository, 30, at_once=10)
    assert place(store).number == 0
    assert place(store).error
    repository.resets_after = None
    before = list(repository.messages)
    forward(store, repository, 31, at_once=10)
    again = repository.messages[len(before) :]
    assert again[:5] == before, "what comes twice is the same, octet for octet"
    assert [row for event, row in repository.told[len(before) :] if event == APPLICATION] == list(range(1, 31))
    assert place(store).error is None


def test_an_end_that_is_not_an_acknowledgement_is_not_taken_for_one(store, repository):
    note(store, "node.started", 1)
    for how in ("leaves_at_once", "hangs"):
        setattr(repository, how, True)
        with pytest.raises(NotTaken):
            forward(store, repository, 2, timeout_s=0.3)
        setattr(repository, how, False)
        assert place(store).number == 0, how


def test_a_process_killed_before_it_noted_the_acknowledgement_tells_the_same_again(store, repository, monkeypatch):
    for number in range(5):
        note(store, "node.started", number)
    store.receive(1, 2, now=5)

    class Killed(BaseException):
        pass

    made = Forwarder(settings(store, repository.port), store.database)
    keep = made._keep

    def dies(new: forwarding.Place) -> forwarding.Place:
        if new.pending is None:
            raise Killed
        return keep(new)

    monkeypatch.setattr(made, "_keep", dies)
    with pytest.raises(Killed):
        made.step(6)
    note(store, "node.started", 7)  # comes meanwhile: what was being sent is sent again without it
    once = list(repository.messages)
    assert len(once) == 5
    forward(store, repository, 8, head_hours=1000)
    assert repository.messages[len(once) : 2 * len(once)] == once
    assert [row for event, row in repository.told[2 * len(once) :]] == [9]


def test_only_one_of_two_nodes_on_an_index_tells_it_until_its_lease_ends(store, repository):
    first, second = (Forwarder(settings(store, repository.port), store.database) for _ in range(2))
    first._alone = second._alone = False
    note(store, "node.started", 1)
    assert not first.step(2)
    note(store, "node.stopped", 3)
    assert not second.step(4)
    assert len(repository.messages) == 1
    second.step(4 + forwarder.LEASE_S)
    assert repository.told[1] == (APPLICATION, 2)
    assert not first.step(5 + forwarder.LEASE_S)


def test_without_from_the_beginning_only_what_happens_from_now_on_is_told(store, repository):
    note(store, "node.started", 1)
    forward(store, repository, 2, from_the_beginning=False, head_hours=1000)
    note(store, "node.stopped", 3)
    forward(store, repository, 4, from_the_beginning=False, head_hours=1000)
    assert [row for event, row in repository.told if event == APPLICATION] == [2]


def test_rows_that_were_archived_before_they_were_told_are_told_from_the_archives(store, repository):
    for number in range(30):
        note(store, "node.started", number)
    for before in (10, 20):
        audit_archive.archive(store.database, store.folder / "audit", before, 1000.0, {})
    forward(store, repository, 1001, at_once=7, head_hours=1000)
    assert [row for event, row in repository.told if event == APPLICATION] == list(range(1, 31))
    assert sum(event == LOG_USED for event, _ in repository.told) == 2


def test_what_was_being_told_may_be_archived_meanwhile(store, repository):
    for number in range(30):
        note(store, "node.started", number)
    repository.resets_after = 3
    with pytest.raises(NotTaken):
        forward(store, repository, 30)
    audit_archive.archive(store.database, store.folder / "audit", 20, 1000.0, {})
    repository.resets_after = None
    before = len(repository.messages)
    forward(store, repository, 1001)
    assert [row for event, row in repository.told[before:] if event == APPLICATION] == list(range(1, 31))


def test_a_missing_archive_holds_the_messages_up_and_says_so(store, repository):
    for number in range(5):
        note(store, "node.started", number)
    made = audit_archive.archive(store.database, store.folder / "audit", 3, 1000.0, {})
    (store.folder / "audit" / made.file).rename(store.folder / "elsewhere.gz")
    with pytest.raises(CorruptFile):
        forward(store, repository, 1001)
    with store.database.read() as tx:
        found = forwarding.lag(tx, 1010)
    assert (found["rows"], "audit-" in found["error"]) == (6, True)


def test_the_head_is_told_every_hour_and_at_the_end(store, repository):
    note(store, "node.started", 10_000)
    for now in (10_001, 10_100, 13_601 + 1, 13_700):
        forward(store, repository, now)
    assert sum(event == LOG_USED for event, _ in repository.told) == 2
    forward(store, repository, 13_701, last=True)
    assert [event for event, _ in repository.told] == [APPLICATION, LOG_USED, LOG_USED, LOG_USED]
    with store.database.read() as tx:
        number, digest = audit.head(tx)
    assert f'ParticipantObjectID="{number}:{digest}"' in repository.messages[-1]


def test_nothing_is_written_and_nothing_sent_while_nothing_happens(store, repository):
    note(store, "node.started", 1)
    made = forward(store, repository, 2)
    before, connections = place(store).raw, repository.connections
    for now in range(3, 30):
        assert not made.step(now)
    assert (place(store).raw, repository.connections) == (before, connections)


def tamper(store: Store, *statements: str) -> None:
    with store.database.engine.begin() as tx:
        if store.url.startswith("sqlite"):
            for (name,) in tx.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                tx.execute(text(f"DROP TRIGGER {name}"))
        else:
            tx.execute(text("ALTER TABLE audit DISABLE TRIGGER USER"))
        for one in statements:
            tx.execute(text(one))


def test_a_trail_that_was_altered_where_it_is_being_told_is_an_alert(store, repository):
    for number in range(5):
        note(store, "node.started", number)
    tamper(store, "UPDATE audit SET at = 3.5 WHERE id = 4")
    forward(store, repository, 10, head_hours=1000)
    assert repository.told[3:5] == [(ALERT, 4), (APPLICATION, 4)]


def test_a_trail_that_lost_what_was_told_is_an_alert_and_is_told_from_its_end_on(store, repository):
    for number in range(5):
        note(store, "node.started", number)
    forward(store, repository, 10, head_hours=1000)
    tamper(store, "DELETE FROM audit WHERE id > 3")
    note(store, "node.started", 11)
    before = len(repository.messages)
    forward(store, repository, 12, head_hours=1000)
    note(store, "node.stopped", 13)
    forward(store, repository, 14, head_hours=1000)
    events = [event for event, _ in repository.told[before:]]
    assert (events[0], events[-1]) == (ALERT, APPLICATION)


# Settings.


def test_without_tls_messages_go_to_this_machine_only_unless_the_site_says_so(tmp_path):
    def mistakes(lines: str) -> list[str]:
        (tmp_path / "node.toml").write_text(f"[audit.syslog]\n{lines}")
        return [str(one) for one in read(tmp_path / "node.toml")[1]]

    assert mistakes('host = "127.0.0.1"\ntls = false') == []
    assert mistakes('host = "10.0.0.1"') == []
    assert "they name patients" in mistakes('host = "10.0.0.1"\ntls = false')[0]
    assert mistakes('host = "10.0.0.1"\ntls = false\nplain_beyond_this_machine = true') == []
    assert "belong together" in mistakes('host = "10.0.0.1"\ntls_key = "a"')[0]


def test_health_status_and_metrics_say_how_far_behind_the_messages_are(store):

    from dicom_node.runtime.metrics import registry_of
    from dicom_node.web.health import _audit_messages

    at = time.time() - 3000
    note(store, "node.started", at)
    wanted = settings(store, 1, timeout_s=0.2)
    with pytest.raises(NotTaken):
        Forwarder(wanted, store.database).step(at + 1)
    registry = registry_of(wanted, store.database, store.files)
    assert registry.get_sample_value("dicom_node_problem", {"word": "audit-messages-late"}) == 1
    assert registry.get_sample_value("dicom_node_audit_rows_untold") == 1
    with store.database.read() as tx:
        counts = {"audit_messages": forwarding.lag(tx, time.time())}
    [problem] = _audit_messages(wanted, counts)
    assert "Nothing is lost" in problem.to_do
    assert "away" in problem.to_do


def test_a_place_is_json_that_a_person_can_read(store, repository):
    note(store, "node.started", 1)
    forward(store, repository, 2)
    assert json.loads(place(store).text())["number"] == 1
    assert SimpleNamespace(**json.loads(place(store).text())).error is None


def test_a_file_of_tls_that_is_not_there_is_no_fault_of_the_repository(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        settings = SyslogSettings(host="127.0.0.1", port=port, tls_authorities=tmp_path / "gone.pem")
        with pytest.raises(NotTaken, match="names is not there"):
            syslog.deliver(settings, [b"x"])
