"""Sends canaries when they are due, judges those that were sent, and clears old ones away. One step does a little.

All that counts is in the index. A node that is killed at any point goes on from there: a canary that was being sent is
given up, its part of a series is refused as incomplete, and the next one is sent in its time.
"""

import shutil
from pathlib import Path

import structlog

from config.settings import Settings
from dicom_node.canary.judging import judge
from dicom_node.canary.study import new_uid, study_of, write_copy
from dicom_node.errors import NodeError
from dicom_node.scu import own_receiver, push
from storage import canaries, hosts, retention
from storage.canaries import CanaryState, Run
from storage.database import Database
from storage.files import FileStore
from storage.series_state import SERIES

log = structlog.get_logger()

EVERY_S = 5.0
HOUR_S = 3600.0
BY_ITSELF = "the schedule"


class Canaries:
    """The canaries of a node, for the one host that decides."""

    def __init__(self, settings: Settings, database: Database, files: FileStore) -> None:
        self._settings = settings
        self._rules = settings.canary
        self._database = database
        self._files = files

    def step(self) -> None:
        """Do what is to be done now. Sending a canary takes as long as its images do."""
        now = self._database.now()
        with self._database.read() as tx:
            waiting = canaries.open_runs(tx)
        for run in waiting:
            self._go_on(run, now)
        self._clear(now)
        if not waiting and self._is_due(now):
            ask(self._database, self._settings, BY_ITSELF)
        self._note_stale(now)

    def _go_on(self, run: Run, now: float) -> None:
        if run.state == CanaryState.ASKED and now > run.due_at:
            self._end(run, CanaryState.FAILED, "It was not sent in time.")
        elif run.state == CanaryState.ASKED and self._all_know(now):
            self._send(run)
        elif run.state == CanaryState.SENDING:  # by a process that is gone: this one sends within a step
            self._end(run, CanaryState.ABANDONED, "The node was stopped while it was being sent.")
        elif run.state == CanaryState.WAITING:
            self._judge(run, now)

    def _all_know(self, now: float) -> bool:
        """Whether every host knows what a canary is: one of an earlier version would take it for a patient's."""
        with self._database.read() as tx:
            return len({host.schema_version for host in hosts.all_of(tx) if host.lives(now)}) <= 1

    def _is_due(self, now: float) -> bool:
        with self._database.read() as tx:
            newest = next(iter(canaries.latest(tx)), None)
        period_s = (self._rules.every_hours or 0) * HOUR_S
        # A clock that was ahead must not put off the next one.
        return newest is None or not 0 <= now - newest.asked_at < period_s

    def _send(self, run: Run) -> None:
        """Send its images to the node's own receiver, as a sender would."""
        outgoing = self._settings.data_dir / "canary" / "outgoing"
        try:
            self._prepare(run, outgoing)
            peer = own_receiver.address(self._settings, tls=self._settings.receiver.tls_certificate is not None)
            title = own_receiver.calling_ae(self._settings)
            caller = self._settings.sender.model_copy(update={"calling_ae_title": title})
            done = push.send_to(peer, caller, outgoing)
        except (NodeError, OSError) as error:
            why = str(error) if isinstance(error, NodeError) else type(error).__name__
            self._end(run, CanaryState.FAILED, f"It could not be sent: {why}.")
            return
        finally:
            shutil.rmtree(outgoing, ignore_errors=True)
        if done.failed:
            why = done.detail.partition(":")[0]
            self._end(run, CanaryState.FAILED, f"The receiver did not take {done.failed} of its images: {why}.")
            return
        with self._database.transaction() as tx:
            canaries.sent(tx, run.id, self._database.now())
        log.info("canary sent", canary=run.id, images=done.stored)

    def _prepare(self, run: Run, outgoing: Path) -> None:
        """Its images, written before the index knows their UIDs, and known to the index before any is sent."""
        study = study_of(self._settings)
        uids = [new_uid() for _ in study.paths]
        write_copy(study, run.study_instance_uid, run.series_instance_uid, uids, outgoing)
        with self._database.transaction() as tx:
            canaries.begin(tx, run.id, uids, study.digest, self._database.now())

    def _judge(self, run: Run, now: float) -> None:
        with self._database.read() as tx:
            found = judge(tx, run, now)
        if found.state is None:
            return
        with self._database.transaction() as tx:
            for one in found.learnt:
                canaries.expect(tx, one)
            canaries.end(tx, run, found.state, found.said, now)
        log.info("canary ended", canary=run.id, state=found.state)

    def _end(self, run: Run, state: CanaryState, said: str) -> None:
        with self._database.transaction() as tx:
            held = next(one for one in canaries.open_runs(tx) if one.id == run.id)
            canaries.end(tx, held, state, said, self._database.now())
        log.warning("canary ended", canary=run.id, state=state)

    def _clear(self, now: float) -> None:
        """Delete the images of old canaries: first in the index, as retention does."""
        with self._database.read() as tx:
            old = canaries.to_clear(tx, self._rules.keep)
        for run in old:
            with self._database.transaction() as tx:
                paths: list[str] = []
                if run.series_pk is not None and canaries.is_in_hand(tx, run.series_pk):
                    continue  # too late for the canary, but its job must find its images
                if run.series_pk is not None:
                    SERIES.row(tx, run.series_pk)  # locked: what arrives now is recorded after this
                    paths = retention.remove_images(tx, run.series_pk, now, {"canary": run.id})
                canaries.note_cleared(tx, run, now)
            self._files.remove_all(paths)

    def _note_stale(self, now: float) -> None:
        patience_s = self._rules.patience_s
        with self._database.read() as tx:
            stale = patience_s is not None and canaries.alarm(tx, now, patience_s) == canaries.STALE
            newest = next(iter(canaries.latest(tx)), None)
        if stale and newest is not None and newest.stale_at is None:
            with self._database.transaction() as tx:
                canaries.note_stale(tx, newest, now)


def ask(database: Database, settings: Settings, by: str) -> int:
    """Have a canary sent at the next step, unless one is on its way already. Returns its number."""
    now = database.now()
    with database.transaction() as tx:
        waiting = canaries.open_runs(tx)
        if waiting:
            return waiting[0].id
        return canaries.ask(tx, new_uid(), new_uid(), by, now, settings.canary.within_s)
