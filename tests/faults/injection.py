"""Fail points and seeded bugs in a real node, put there from outside: the product's code has none.

NODE_FAULTS names a folder; `install` wraps the durable steps of each process of a node that zygote.py starts with it.
    kill    the points at which to die, "process:step:moment", one a line; if absent, nothing dies
    nth     how often a point has to be reached for that, if its line does not say so after a space; if absent, once
    scope   "tree": all processes of the node die at once; "power": they do, and the disk loses every file that was
            not synced; "process": only the one that reached the point
    slow    seconds that the stand-ins for the models take
    done.N  written by the process that dies at the Nth of these points, so that it happens once
    points  every point that was reached, one per line
    synced  every file whose bytes were synced, and every name in a folder at the time the folder was synced

A point is named by the process, the durable step and the moment: the worker, just before the commit of the
transaction in that function, is "work:dicom_node.analysis.worker.Worker._commit:before". points.py lists the
steps from the code.

The networks are replaced by a stand-in that finds the same in every volume, and so is the lung densitometry. These
tests do not depend on what a model finds, and starting the networks would take most of the time. Everything else is the
real node, down to the models' cards and plugs.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "NODE_FAULTS"
PROCESSES = ("run", "receive", "schedule", "deliver", "work")


def install() -> None:
    """Wrap the durable steps of this process."""
    sys.modules["inference.covid.pipeline"] = sys.modules["inference.covid.loading"] = _stand_in()
    sys.modules["inference.densitometry.model"] = _stand_in_of_densitometry()
    _wrap_files()
    _wrap_transactions()
    _wrap_network()
    _note_syncs()
    _hurry()
    _tell()
    faulthandler.register(signal.SIGUSR1)  # writes what every thread is doing to the node's log


def configured(name: str) -> str:
    """The text of one of the files in the folder, or nothing."""
    folder = os.environ.get(FOLDER)
    path = Path(folder) / name if folder else None
    return path.read_text() if path is not None and path.exists() else ""


def reached(step: str, moment: str) -> None:
    """Record the point, and die there if it is the requested one."""
    folder = Path(os.environ.get(FOLDER, "/nowhere"))
    if not folder.exists():
        return
    point = f"{process()}:{step}:{moment}"
    with (folder / "points").open("a") as points:
        points.write(f"{point}\n")
    for number, line in enumerate(configured("kill").splitlines()):
        wanted, _, nth = line.partition(" ")
        often = int(nth or configured("nth") or 1)
        if wanted == point and configured("points").split().count(point) >= often:
            _die(folder / f"done.{number}")


def _die(done: Path) -> None:
    """Die, unless that has been done."""
    try:
        os.close(os.open(done, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if configured("scope") != "process":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def process() -> str:
    """The role of this process in the node: run, receive, schedule, deliver or work."""
    return next((word for word in sys.argv[1:] if word in PROCESSES), "none")


def wrap(owner: Any, name: str, step: str) -> None:
    """Make a function a durable step, with a point before it and one after it."""
    function = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        reached(step, "before")
        result = function(*arguments, **named)
        reached(step, "after")
        return result

    setattr(owner, name, wrapped)


def _wrap_files() -> None:
    from storage import folder, private

    wrap(folder.FolderFile, "__init__", "storage.folder.FolderFile.__init__")
    wrap(folder.FolderFile, "commit", "storage.folder.FolderFile.commit")
    wrap(folder.FolderFile, "discard", "storage.folder.FolderFile.discard")
    wrap(private, "fsync_folder", "storage.private.fsync_folder")
    wrap(folder._DayFolder, "sync", "storage.folder._DayFolder.sync")
    wrap(folder.FolderStore, "_make_durably", "storage.folder.FolderStore._make_durably")
    wrap(folder.FolderStore, "make_durable", "storage.folder.FolderStore.make_durable")
    wrap(folder.FolderStore, "remove", "storage.folder.FolderStore.remove")
    wrap(folder.FolderStore, "_move", "storage.folder.FolderStore._move")
    wrap(folder.FolderStore, "delete_quarantine", "storage.folder.FolderStore.delete_quarantine")

    from storage import bucket, bucket_store

    for name in ("put_new", "replace", "delete", "move"):
        wrap(bucket.Bucket, name, f"storage.bucket.Bucket.{name}")
    wrap(bucket_store.BucketStore, "make_durable", "storage.bucket_store.BucketStore.make_durable")

    from storage import mark

    wrap(mark.Mark, "write", "storage.mark.Mark.write")
    wrap(mark.Mark, "sync", "storage.mark.Mark.sync")


def _note_syncs() -> None:
    """Keep a list of what the disk would still hold after a power failure."""
    fsync = os.fsync
    known: set[str] = set()

    def noted(fd: int) -> None:
        fsync(fd)
        folder = Path(os.environ.get(FOLDER, "/nowhere"))
        if not folder.exists():
            return
        path = os.readlink(f"/proc/self/fd/{fd}")
        lines = {f"name {path}/{name}\n" for name in os.listdir(path)} if os.path.isdir(path) else {f"bytes {path}\n"}
        new = lines - known
        known.update(new)
        with (folder / "synced").open("a") as synced:
            synced.write("".join(new))

    os.fsync = noted


def _wrap_transactions() -> None:
    """Make every transaction a step, named by the function that began it."""
    from storage import database

    transaction = database.Database.transaction

    @contextlib.contextmanager
    def transacted(self: database.Database, step: str) -> Iterator[Any]:
        with transaction(self) as tx:
            yield tx
            reached(step, "before")
        reached(step, "after")

    def begun(self: database.Database) -> Any:
        frame = sys._getframe(1)
        return transacted(self, f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}")

    database.Database.transaction = begun  # type: ignore[method-assign, assignment]


def _wrap_network() -> None:
    """Make steps of the promises to peers and by peers, with a point just before and just after each message."""
    from pynetdicom.association import Association as Requestor

    from dicom_node.delivery import commitment, commitment_listener
    from dicom_node.gateways import http
    from dicom_node.gateways.hl7 import mllp
    from dicom_node.receiver.association import Association
    from dicom_node.scu import store as scu

    wrap(Association, "_answer", "c-store-response")
    wrap(scu, "_store_one", "c-store")
    wrap(http.HttpPeer, "exchange", "http")
    wrap(mllp, "_send", "mllp")
    wrap(Requestor, "send_n_action", "n-action")
    wrap(commitment, "answer_report", "n-event-report")
    commitment_listener.answer_report = commitment.answer_report  # type: ignore[attr-defined]


def _hurry() -> None:
    """Do at once what a node otherwise does every few seconds or hours."""
    from dicom_node.cluster import pools
    from dicom_node.runtime import scheduler
    from storage import orphans

    pools.EVERY_S = 1.0
    scheduler.LEASES_EVERY_S = scheduler.RETENTION_EVERY_S = 0.5
    scheduler.LEAD_EVERY_S = 0.3
    scheduler.SWEEP_EVERY_S = scheduler.EPOCH_EVERY_S = 0.5
    orphans.LIST_ALL_EVERY_S = 0.0


def _tell() -> None:
    """A destination named "told" gets messages, whatever its kind. No two of them are the same if composed twice."""
    import uuid

    from dicom_node.delivery import sender, ways
    from dicom_node.gateways import http, interface, kinds

    class Told:
        """Posts the message, with its key."""

        def __init__(self, destination: Any, settings: Any) -> None:
            self._peer = http.HttpPeer(destination, settings.sender)

        def compose(self, result: Any) -> Any:
            return interface.Message(f"{result.report_uid} {uuid.uuid4()}".encode(), "text/plain", result.report_uid)

        def send(self, message: Any) -> Any:
            try:
                return self._peer.ask("POST", "/told", message.content, {"Key": message.key}).verdict
            except http.NoAnswer as error:
                return error.verdict

    way_of = ways.way_of

    def chosen(settings: Any, destination: Any, database: Any, files: Any) -> Any:
        way = ways.MessagesWay if destination.name == "told" else way_of
        return way(settings, destination, database, files)

    sender.way_of = chosen  # type: ignore[attr-defined]
    kinds.MESSAGES = {**kinds.MESSAGES, "stow": Told}  # type: ignore[misc, dict-item]


def _stand_in() -> types.ModuleType:
    """Replace `inference.covid.pipeline` and `loading` by stand-ins without torch."""
    module = types.ModuleType("inference.covid.pipeline")

    class Pipeline:
        """Finds the same in every volume."""

        def __init__(self, folder: Path) -> None:
            from inference.models.cards import read_card

            self.card = read_card(folder)
            self.identity = self.card.identity()

        def run(self, volume: Any, *, trace: bool = False) -> Any:
            from tests.factories import verdict_on

            time.sleep(float(configured("slow") or 0))
            return verdict_on(volume, threshold=self.card.threshold)

    def load_pipeline(folder: Path, device: str = "auto", **_: object) -> Pipeline:
        return Pipeline(folder)

    module.Pipeline = Pipeline  # type: ignore[attr-defined]
    module.load_pipeline = load_pipeline  # type: ignore[attr-defined]
    return module


def _stand_in_of_densitometry() -> types.ModuleType:
    """Replace `inference.densitometry.model` by one that measures the same in every volume."""
    module = types.ModuleType("inference.densitometry.model")

    class Densitometry:
        """Measures the same in every volume."""

        def __init__(self, *_: object) -> None: ...

        def analyse(self, _: Any) -> Any:
            from inference.densitometry import codes
            from inference.plug import Measurement, Output

            time.sleep(float(configured("slow") or 0))
            both = codes.LATERALITY["both"]
            return Output((Measurement(codes.LAA_PERCENT, 12.5, codes.PERCENT, codes.LUNG, both),))

    module.Densitometry = Densitometry  # type: ignore[attr-defined]
    return module
