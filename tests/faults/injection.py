"""Fail points in a real node, put there from outside: the product's code has none.

NODE_FAULTS names a folder; `install` wraps the durable steps of each process of the node that is started with it.
    kill    the one point at which to die, "process:step:moment" (absent: nowhere)
    scope   "tree": all processes of the node die at once; "process": only the one that reached the point
    done    written by whoever dies, so that it happens once
    points  every point that was reached, one a line

A point is named by the process, the durable step and the moment, such as "work:result.recorded:before": the worker,
just before the commit of the transaction that records a result.

The networks are replaced by a stand-in that finds the same in every volume: nothing here is about what they find,
and their start would be most of the time. Everything else is the node as it is.
"""

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "NODE_FAULTS"
# Of the events in a transaction, the first of these names it.
STEPS = (
    "result.recorded",
    "job.running",
    "series.closed",
    "delivery.sending",
    "delivery.sent",
    "delivery.committed",
    "delivery.commitment-requested",
    "instance.received",
    "node.started",
)


def install() -> None:
    """Wrap the durable steps of this process."""
    if FOLDER not in os.environ:
        return
    sys.modules["inference.pipeline"] = _stand_in()
    _wrap_registry()
    _wrap_files()
    _wrap_transactions()
    _wrap_answers()


def reached(step: str, moment: str) -> None:
    """Note the point, and die where it is the one asked for."""
    folder = Path(os.environ[FOLDER])
    point = f"{_process()}:{step}:{moment}"
    with (folder / "points").open("a") as points:
        points.write(f"{point}\n")
    kill = folder / "kill"
    if not kill.exists() or kill.read_text() != point:
        return
    try:
        os.close(os.open(folder / "done", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if (folder / "scope").read_text() == "tree":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _process() -> str:
    """The part of the node that this process is: run, receive, schedule, deliver or work."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "none")


def _wrap_files() -> None:
    from storage import files

    commit = files.NewFile.commit

    def committed(self: files.NewFile) -> files.StoredFile:
        reached("file", "before")
        stored = commit(self)
        reached("file", "after")
        return stored

    files.NewFile.commit = committed  # type: ignore[method-assign]


def _wrap_transactions() -> None:
    from storage import audit, database

    transaction = database.Database.transaction

    @contextlib.contextmanager
    def transacted(self: database.Database) -> Iterator[Any]:
        with transaction(self) as tx:
            yield tx
            events = {row["event"] for row in tx.info.get(audit.PENDING, ())}
            step = next((name for name in STEPS if name in events), None)
            if step:
                reached(step, "before")
        if step:
            reached(step, "after")

    database.Database.transaction = transacted  # type: ignore[method-assign]


def _wrap_answers() -> None:
    """The receiver has done everything for an instance and has not answered yet."""
    if _process() != "receive":
        return
    from dicom_node.receiver import store

    finish = store.Reception.finish

    def finished(self: store.Reception) -> tuple[int, str]:
        answer = finish(self)
        reached("answer", "before")
        return answer

    store.Reception.finish = finished  # type: ignore[method-assign]


def _wrap_registry() -> None:
    """The stand-in needs a card and no weights: whatever model is shipped will do."""
    from inference import registry

    find = registry.find_model

    def found(models_dir: Path, *_: object) -> Path:
        return find(models_dir, None, None)

    registry.find_model = found


def _stand_in() -> types.ModuleType:
    """`inference.pipeline` without torch."""
    module = types.ModuleType("inference.pipeline")

    class Pipeline:
        """Finds the same in every volume."""

        def __init__(self, folder: Path) -> None:
            from inference.cards import read_card

            self.card = read_card(folder)
            self.identity = self.card.identity()

        def run(self, volume: Any, *, trace: bool = False) -> Any:
            from tests.factories import finding_on

            return finding_on(volume, model=self.identity)

    def load_pipeline(folder: Path, device: str = "auto", **_: object) -> Pipeline:
        return Pipeline(folder)

    module.Pipeline = Pipeline  # type: ignore[attr-defined]
    module.load_pipeline = load_pipeline  # type: ignore[attr-defined]
    return module
