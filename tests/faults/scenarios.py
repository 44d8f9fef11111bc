"""Short lives of a node that together reach every durable step of every process. Each can be killed at one step."""

import atexit
import io
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydicom import dcmread
from pydicom.filereader import read_dataset
from pynetdicom.dsutils import encode

from storage import orphans
from storage.reconcile import ORPHAN_AGE_S
from tests.attacker import element
from tests.dicomweb_source import WebSource
from tests.faults.campaign import PATIENCE_S, Archive, Dicomweb, Node, Pacs, check, ct_series
from tests.mllp_server import mllp_server
from tests.programs import free_port, wait_for
from tests.rejection_notes import KEY_OBJECTS, rejection_note
from tests.s3 import S3, s3_server
from tests.zygote import Zygote

MIGRATE, ROOT_FOLDER = "storage.database.Database.migrate", "storage.private.fsync_folder"
AT_START = [MIGRATE, ROOT_FOLDER]
NEW_FILE = [
    "storage.folder.FolderFile.__init__",
    "storage.folder.FolderFile.commit",
    "storage.folder._DayFolder.sync",
    "storage.folder.FolderStore._make_durably",
]
EPOCH = ["storage.identity.raise_epoch", "storage.mark.Mark.write", "storage.mark.Mark.sync"]
PREPARE = [*AT_START, *EPOCH, "storage.reconcile.reconcile", "dicom_node.runtime.startup.prepare"]
TWO_MODELS = ("demonstration", "densitometry")
OF_EACH_MODEL = {
    "work": [*NEW_FILE[:3], "dicom_node.analysis.worker.Worker._commit"],
    "deliver": [
        "c-store",
        "dicom_node.delivery.sender.DestinationSender._record",
        "n-action",
        "n-event-report",
        "dicom_node.delivery.commitment.record_answer",
    ],
}
"""The steps that a node takes for each model, so that it can die at the second time."""
WRITE_ROWS = "dicom_node.receiver.committer.Committer._write"


@dataclass(frozen=True)
class Life:
    """The arguments of a scenario. point: where to die, or nothing. nth, scope: see injection.py."""

    zygote: Zygote
    folder: Path
    point: str = ""
    scope: str = "tree"
    nth: int = 1
    in_bucket: bool = False

    def node(
        self,
        pacs_port: int,
        commitment: str = "request",
        slow: str = "0",
        models: Sequence[str] = (),
        **variables: str,
    ) -> Node:
        """A node that will die at the point."""
        s3 = S3(_s3_port()) if self.in_bucket else None
        node = Node(self.zygote, self.folder, pacs_port, commitment, models=models, s3=s3, **variables)
        node.configure(kill=self.point, scope=self.scope, slow=slow, nth=str(self.nth))
        return node


Scenario = Callable[[Life], Node]


def report(life: Life, models: Sequence[str] = ()) -> Node:
    """A series comes in, its report goes out, and the PACS commits to storing it."""
    slow = "1.2" if "heartbeat.kept" in life.point else "0"
    with ExitStack() as stack:
        pacs = Pacs(slow_s=float(slow))
        stack.callback(pacs.stop)
        node = life.node(pacs.port, slow=slow, models=models)
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        node.send(ct_series(), acknowledged)
        node.settle()
        check(node, pacs, acknowledged)
        node.end()
    return node


def two_models(life: Life) -> Node:
    """The same with two models, each with a report; the node dies at work on the first of them."""
    return report(life, TWO_MODELS)


def second_of_two(life: Life) -> Node:
    """As `two_models`; the node dies at work on the second."""
    return report(replace(life, nth=2), TWO_MODELS)


def archive(life: Life) -> Node:
    """The report goes to an archive by DICOMweb."""
    with ExitStack() as stack:
        web = Dicomweb()
        stack.callback(web.stop)
        node = life.node(0, DICOM_NODE_DESTINATIONS=json.dumps([web.destination("archive")]))
        _one_series(node, stack, web)
    return node


def told(life: Life) -> Node:
    """The report goes to the PACS, and a message about it to another system: always the same one."""
    with ExitStack() as stack:
        pacs, web = Pacs(), Dicomweb()
        stack.callback(pacs.stop)
        stack.callback(web.stop)
        own = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port, "commitment": "request"}
        node = life.node(0, DICOM_NODE_DESTINATIONS=json.dumps([own, web.destination("told")]))
        _one_series(node, stack, pacs)
        assert web.archive.told.keys() == pacs.reports().keys(), "a message that says nothing of the report"
        assert all(len(set(contents)) == 1 for contents in web.archive.told.values()), "one key, two messages"
    return node


def other_systems(life: Life) -> Node:
    """Two slices are counted and fetched by DICOMweb, a RIS is told by HL7, and then the PACS rejects an image."""
    everything = ct_series()
    slices = [dcmread(io.BytesIO(part10(uid, data))) for uid, data in everything.items()]
    note = rejection_note(slices[:1])
    with ExitStack() as stack:
        pacs, web = Pacs(), stack.enter_context(WebSource([*slices, note]))
        stack.callback(pacs.stop)
        engine = stack.enter_context(mllp_server(life.folder / "engine"))
        destinations = [
            {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port, "commitment": "request"},
            {"kind": "hl7", "name": "ris", "host": "127.0.0.1", "port": engine.port},
            {"kind": "stow", "name": "web", "url": web.url, "send_results": False},
        ]
        node = life.node(
            0, DICOM_NODE_DESTINATIONS=json.dumps(destinations),
            DICOM_NODE_SOURCES=json.dumps([{"ae_title": "ATTACKER", "classes": ["ct", "rejections"]}]),
            DICOM_NODE_COMPLETION__QUERY_DESTINATION="web", DICOM_NODE_COMPLETION__SETTLE_S="0.2",
            DICOM_NODE_COMPLETION__QUIET_S="20", DICOM_NODE_COMPLETION__SILENCE_S="0",
        )  # fmt: skip
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        node.send(dict(list(everything.items())[:-2]), acknowledged)
        node.settle()
        check(node, pacs, acknowledged)
        node.send({str(note.SOPInstanceUID): encode(note, False, True) or b""}, acknowledged, KEY_OBJECTS)
        node.settle()
        check(node, pacs, acknowledged)
        node.end()
        _check_ris(engine.messages)
    return node


def _check_ris(messages: Sequence[bytes]) -> None:
    """A RIS that takes a message with the MSH-10 of an earlier one for a repetition knows what stands."""
    by_key = {message.split(b"|")[9]: message for message in messages}
    assert set(messages) == set(by_key.values()), "one key, two messages"
    results = list(by_key.values())  # in the order in which they came first
    status = [message.split(b"\rOBR")[1].split(b"\r")[0].split(b"|")[25] for message in results]
    assert status == [b"P", b"C"], "a result, and a later one that takes it back"
    assert b"WITHDRAWN" in results[-1] and messages[-1] == results[-1], "what comes last is what stands"


def _one_series(node: Node, stack: ExitStack, pacs: Pacs | Dicomweb) -> None:
    """A series comes in, and what is made of it goes out."""
    stack.callback(node.kill)
    node.start()
    acknowledged: dict[str, str] = {}
    node.send(ct_series(), acknowledged)
    node.settle()
    check(node, pacs, acknowledged)
    node.end()


def best(life: Life) -> Node:
    """One series of a study is chosen; it is too small for the model and is reported as not analysed."""
    with ExitStack() as stack:
        pacs = Pacs()
        stack.callback(pacs.stop)
        node = life.node(pacs.port, DICOM_NODE_COMPLETION__SELECT="best", DICOM_NODE_REPORT__REPORT_NOT_ANALYSED="true")
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        node.send(ct_series(), acknowledged)
        node.settle()
        check(node, pacs, acknowledged)
        node.end()
    return node


def fetch(life: Life) -> Node:
    """Two slices never arrive, but the PACS has them when it is asked. Its C-FIND confirms that it holds the report."""
    everything = ct_series()
    with ExitStack() as stack:
        (life.folder / "sent").mkdir(parents=True)
        for uid, data in everything.items():
            (life.folder / "sent" / uid).write_bytes(part10(uid, data))
        pacs = Archive(life.folder / "pacs")
        stack.callback(pacs.stop)
        pacs.server.load(life.folder / "sent")
        node = life.node(
            pacs.port, "query",
            DICOM_NODE_COMPLETION__QUERY_DESTINATION="pacs", DICOM_NODE_COMPLETION__SETTLE_S="0.2",
            DICOM_NODE_COMPLETION__QUIET_S="20", DICOM_NODE_COMPLETION__SILENCE_S="0",
        )  # fmt: skip
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        node.send(dict(list(everything.items())[:-2]), acknowledged)
        node.settle()
        check(node, pacs, acknowledged)
        held = node.rows("SELECT sop_instance_uid AS uid FROM instances WHERE gone_at IS NULL")
        assert {row["uid"] for row in held} == everything.keys()
        assert node.rows("SELECT count(*) AS n FROM results") == [{"n": 1}]
        node.end()
    return node


def damage(life: Life) -> Node:
    """Between two lives, the disk loses a slice and a delivered report, and keeps a file that belongs to nothing."""
    with ExitStack() as stack:
        pacs = Pacs()
        stack.callback(pacs.stop)
        node = life.node(pacs.port, DICOM_NODE_WORKER__MAX_ATTEMPTS="2", DICOM_NODE_COMPLETION__QUIET_S="1.5")
        node.configure(kill="")
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        node.send(ct_series(), acknowledged)
        node.settle()
        second = ct_series()
        node.send(second, acknowledged)
        node.kill()
        lost = next(iter(second))
        _damage(node, lost)
        node.configure(kill=life.point)
        # The job fails because the slice is missing; it continues when the slice is sent again.
        wait_for(lambda: (node.tend(), node.rows("SELECT * FROM jobs WHERE state = 'FAILED'"))[1], 60, "it fails")
        del acknowledged[lost]
        node.send(second, acknowledged)
        node.settle()
        check(node, pacs, acknowledged)
        events = {row["event"] for row in node.rows("SELECT event FROM audit")}
        assert {"instance.lost", "instance.restored", "result.lost", "files.swept"} <= events
        node.end()
    return node


def resend(life: Life) -> Node:
    """A slice's file is lost while the node runs, and the slice is sent again."""
    with ExitStack() as stack:
        pacs = Pacs()
        stack.callback(pacs.stop)
        node = life.node(pacs.port, DICOM_NODE_COMPLETION__QUIET_S="3")
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        everything = ct_series()
        node.send(everything, acknowledged)
        for path in _paths(node, list(everything)[:1]):
            node.files.remove(path)
        acknowledged.clear()
        node.send(everything, acknowledged)
        node.settle()
        check(node, pacs, acknowledged)
        named = node.rows("SELECT path FROM instances UNION SELECT path FROM result_objects")
        assert {row["path"] for row in named} <= node.stored(), "a row without its file"
        node.end()
    return node


def second_route(life: Life) -> Node:
    """A series comes again as different bytes that hold the same images."""
    with ExitStack() as stack:
        pacs = Pacs()
        stack.callback(pacs.stop)
        node = life.node(pacs.port)
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        everything = ct_series()
        node.send(everything, acknowledged)
        padding = element(0xFFFCFFFC, b"OB", bytes(2))
        node.send({uid: data + padding for uid, data in everything.items()}, {})
        same = "SELECT * FROM conflicts WHERE verdict = 'SAME'"
        wait_for(lambda: (node.tend(), len(node.rows(same)) == len(everything))[1], 60, "all are judged")
        node.settle()
        check(node, pacs, acknowledged)
        node.end()
        assert node.rows("SELECT count(*) AS n FROM conflicts") == [{"n": len(everything)}]
        assert _kept(node) <= node.stored(), "a row without its file"
    return node


def retention(life: Life) -> Node:
    """The images of a delivered series are removed, and nothing else."""
    with ExitStack() as stack:
        pacs = Pacs()
        stack.callback(pacs.stop)
        node = life.node(pacs.port, DICOM_NODE_STORAGE__RETENTION_DAYS="0.00001")
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        node.send(ct_series(), acknowledged)
        old = _quarantine_of_long_ago(node)
        node.settle()
        wait_for(lambda: (node.tend(), node.rows("SELECT * FROM audit WHERE event = 'series.images-deleted'"))[1], 60)
        wait_for(lambda: (node.tend(), not old())[1], 60, "what was set aside long ago is deleted")
        if life.point:
            wait_for(lambda: (node.tend(), node.died)[1], 30, "the point is reached")
        node.settle()
        node.end()
        check(node, pacs, acknowledged, deleted=True)
        assert _kept(node) <= node.stored(), "a row without its file"
    return node


def report_in_bucket(life: Life) -> Node:
    """As `report`, with the files in a bucket. What a kill leaves there without a row is set aside."""
    node = report(replace(life, in_bucket=True))
    assert _kept(node) <= node.stored(), "a row without its file"
    orphans.sweep(node.database(), node.files, time.time() + 120, ORPHAN_AGE_S)  # as the next start does in a while
    assert _kept(node) == node.stored(), "a file without its row"
    assert not (node.data / "files").exists()
    return node


def best_in_bucket(life: Life) -> Node:
    """As `best`, with the files in a bucket."""
    return best(replace(life, in_bucket=True))


def fetch_in_bucket(life: Life) -> Node:
    """As `fetch`, with the files in a bucket."""
    return fetch(replace(life, in_bucket=True))


def resend_in_bucket(life: Life) -> Node:
    """As `resend`, with the files in a bucket."""
    return resend(replace(life, in_bucket=True))


def second_route_in_bucket(life: Life) -> Node:
    """As `second_route`, with the files in a bucket."""
    return second_route(replace(life, in_bucket=True))


def retention_in_bucket(life: Life) -> Node:
    """As `retention`, with the files in a bucket."""
    return retention(replace(life, in_bucket=True))


def drain(life: Life) -> Node:
    """A node is stopped in the middle of an analysis that takes too long, and restarted."""
    with ExitStack() as stack:
        pacs = Pacs()
        stack.callback(pacs.stop)
        node = life.node(pacs.port, slow="30", DICOM_NODE_WORKER__DRAIN_S="0.1")
        stack.callback(node.kill)
        node.start()
        acknowledged: dict[str, str] = {}
        node.send(ct_series(), acknowledged)
        wait_for(lambda: node.rows("SELECT * FROM jobs WHERE state = 'RUNNING'"), 60, "the job runs")
        status = node.stop()
        if not life.point:
            assert status == 0
            assert node.rows("SELECT state, attempts FROM jobs") == [{"state": "QUEUED", "attempts": 0}]
        node.configure(slow="0")
        node.settle()
        check(node, pacs, acknowledged)
        node.end()
    return node


def stranger(life: Life) -> Node:
    """A host that is not a destination connects to the port for storage commitment answers."""
    with ExitStack() as stack:
        pacs = Pacs()
        stack.callback(pacs.stop)
        port = free_port()
        node = life.node(pacs.port, DICOM_NODE_SENDER__COMMITMENT__PORT=str(port))
        stack.callback(node.kill)
        node.start()
        wait_for(lambda: _refused(node, port), PATIENCE_S, "the refusal is audited")
        check(node, pacs, {})
        node.end()
    return node


# By scenario: the durable steps of each process at which it is killed. Together they are all steps of the node.
STEPS: dict[Scenario, dict[str, list[str]]] = {
    report: {
        "run": [*PREPARE, "dicom_node.runtime.startup.note_stop"],
        "receive": [*AT_START, *NEW_FILE, WRITE_ROWS, "c-store-response"],
        "schedule": [
            *AT_START,
            *EPOCH,
            "dicom_node.completion.closing.Completion.close_due_series",
            "dicom_node.completion.closing.Completion._close",
            "dicom_node.runtime.scheduler._jobs.<locals>.release_leases",
        ],
        "work": [
            *AT_START,
            *NEW_FILE,
            "dicom_node.analysis.worker.Worker.work_once",
            "dicom_node.heartbeat.kept.<locals>.beat",
            "dicom_node.analysis.worker.Worker._commit",
        ],
        "deliver": [
            *AT_START,
            "dicom_node.delivery.sender.DestinationSender.work_once",
            "dicom_node.heartbeat.kept.<locals>.beat",
            "dicom_node.delivery.sender.DestinationSender._record",
            "c-store",
            "dicom_node.delivery.commitment.Asking.settle_one",
            "n-action",
            "n-event-report",
            "dicom_node.delivery.commitment.record_answer",
        ],
    },
    two_models: {"schedule": ["dicom_node.completion.closing.Completion._close"], **OF_EACH_MODEL},
    second_of_two: OF_EACH_MODEL,
    archive: {"deliver": ["http", "dicom_node.delivery.sender.DestinationSender._record"]},
    other_systems: {
        "schedule": [
            "http",
            "dicom_node.completion.retrieve.Keeper._record",
            "dicom_node.completion.closing.Completion._close",
        ],
        "deliver": ["mllp", "dicom_node.delivery.sender.DestinationSender._record"],
    },
    told: {"deliver": ["http", "dicom_node.delivery.ways.MessagesWay._compose"]},
    best: {"schedule": ["dicom_node.completion.best_series.BestSeries._record"]},
    fetch: {
        "schedule": [
            "dicom_node.completion.closing.Completion._try",
            "dicom_node.completion.asking.QueriedPacs.fetch",
            "dicom_node.completion.retrieve.Keeper._record",
            *NEW_FILE,
        ],
        "deliver": ["dicom_node.delivery.commitment.Asking._record"],
    },
    damage: {
        "run": [
            "storage.reconcile._check_instances",
            "storage.reconcile._check_reports",
            "storage.orphans._record",
            "storage.folder.FolderStore._move",
        ],
        "work": ["dicom_node.analysis.worker.Worker._failed"],
    },
    resend: {
        "receive": [
            "storage.held.rely_on_held",
            "storage.folder.FolderStore.make_durable",
            "storage.folder.FolderStore.remove",
        ]
    },
    second_route: {
        "schedule": ["dicom_node.completion.second_copies.compare", "storage.folder.FolderStore.remove"],
    },
    retention: {
        "schedule": [
            "storage.retention.delete_old_images",
            "storage.folder.FolderStore.remove",
            "storage.orphans.empty_quarantine",
            "storage.folder.FolderStore.delete_quarantine",
        ]
    },
    report_in_bucket: {
        "run": ["storage.bucket.Bucket.replace", "storage.reconcile.reconcile"],
        "receive": ["storage.bucket.Bucket.put_new", WRITE_ROWS, "c-store-response"],
        "schedule": ["storage.bucket.Bucket.replace", "storage.identity.raise_epoch"],
        "work": ["storage.bucket.Bucket.put_new", "dicom_node.analysis.worker.Worker._commit"],
        "deliver": ["c-store"],
    },
    best_in_bucket: {"schedule": ["dicom_node.completion.best_series.BestSeries._record"]},
    fetch_in_bucket: {
        "schedule": ["storage.bucket.Bucket.put_new", "dicom_node.completion.retrieve.Keeper._record"],
    },
    resend_in_bucket: {
        "receive": [
            "storage.held.rely_on_held",
            "storage.bucket_store.BucketStore.make_durable",
            "storage.bucket.Bucket.delete",
        ]
    },
    second_route_in_bucket: {
        "schedule": ["dicom_node.completion.second_copies.compare", "storage.bucket.Bucket.delete"]
    },
    retention_in_bucket: {
        "schedule": [
            "storage.retention.delete_old_images",
            "storage.bucket.Bucket.delete",
            "storage.orphans.empty_quarantine",
        ]
    },
    drain: {"work": ["dicom_node.analysis.worker.Worker._hand_back"]},
    stranger: {"deliver": ["dicom_node.delivery.commitment_listener.CommitmentListener._write"]},
}
# The step ends with an exception because its file is missing, so there is no moment after it.
NO_AFTER = {
    "resend receive storage.folder.FolderStore.make_durable",
    "resend_in_bucket receive storage.bucket_store.BucketStore.make_durable",
}


@cache
def _s3_port() -> int:
    """An S3 server for the nodes of this process, for as long as it lives."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(s3_server(Path(tempfile.mkdtemp(prefix="s3-"))))


def part10(uid: str, data: bytes) -> bytes:
    """A DICOM file of an encoded CT slice."""
    from dicom_node.receiver.part10 import encode_file_start
    from tests.attacker import CTImageStorage, ExplicitVRLittleEndian

    return encode_file_start(str(CTImageStorage), uid, str(ExplicitVRLittleEndian)) + data


def with_number(made: Mapping[str, bytes], number: int) -> dict[str, bytes]:
    """The same slices as a series of another study: twelve digits of each of its UIDs tell the number."""

    def other(uid: str) -> str:
        return f"{uid[:-18]}{number:012d}{uid[-6:]}"

    first = read_dataset(io.BytesIO(next(iter(made.values()))), is_implicit_VR=False, is_little_endian=True)
    known = [str(first.StudyInstanceUID), str(first.SeriesInstanceUID)]
    found = {}
    for uid, data in made.items():
        for old in (uid, *known):
            data = data.replace(old.encode(), other(old).encode())
        found[other(uid)] = data
    return found


def _refused(node: Node, port: int) -> bool:
    """Connect from an address of this machine that no destination has; True when that is in the audit trail."""
    node.tend()
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1, ("127.0.0.2", 0)) as knock:
        knock.recv(1)
    return bool(node.rows("SELECT 1 FROM audit WHERE event = 'commitment.refused'"))


def _paths(node: Node, uids: list[str]) -> list[str]:
    rows = {r["sop_instance_uid"]: r["path"] for r in node.rows("SELECT sop_instance_uid, path FROM instances")}
    return [rows[uid] for uid in uids]


def _kept(node: Node) -> set[str]:
    rows = node.rows("SELECT path FROM result_objects UNION SELECT path FROM instances WHERE gone_at IS NULL")
    return {row["path"] for row in rows}


def _quarantine_of_long_ago(node: Node) -> Callable[[], bool]:
    """A file that a sweep quarantined in 2020. Returns what tells whether it is there."""
    path = f"quarantine/2020-01-01/2019/12/31/{'0' * 32}.dcm"
    if node.s3 is not None:
        s3 = node.s3
        s3.write(path, b"nobody's")
        return lambda: path in s3.stored()
    file = node.data / "files" / path
    file.parent.mkdir(parents=True)
    file.write_bytes(b"nobody's")
    with (node.faults / "synced").open("a") as synced:
        synced.write(f"name {file}\nbytes {file}\n")
    return file.exists


def _damage(node: Node, lost: str) -> None:
    for path in _paths(node, [lost]):
        node.files.remove(path)
    (report_path,) = [node.data / "files" / row["path"] for row in node.rows("SELECT path FROM result_objects LIMIT 1")]
    report_path.unlink()
    orphan = report_path.with_name("0" * 32 + ".dcm")
    orphan.write_bytes(b"nobody's")
    os.utime(orphan, (1, 1))
    with (node.faults / "synced").open("a") as synced:
        synced.write(f"name {orphan}\nbytes {orphan}\n")
