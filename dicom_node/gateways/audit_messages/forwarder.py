"""The loop that tells the audit trail to a repository: in order, from a place that the index keeps.

What is about to be sent is kept first, as the row up to which it goes. So what a broken connection or a killed process
leaves in doubt is sent again as it was, and a receiver can tell it by its row. Only after the receiver has read all of
it does the place move on.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import structlog

from config.settings import Settings
from dicom_node.gateways.audit_messages import syslog
from dicom_node.gateways.audit_messages.folding import Gathering
from dicom_node.gateways.audit_messages.syslog import NotTaken, framed
from dicom_node.gateways.audit_messages.table import counterpart
from dicom_node.gateways.audit_messages.telling import Teller, detail_of
from dicom_node.waits import doubling_s
from storage import audit, forwarding
from storage.database import Database
from storage.errors import StaleLease, StorageError
from storage.forwarding import Place, Row, Trail

log = structlog.get_logger()

AT_ONCE = 2000
"""Rows that are read at once: at most so many messages are one batch."""
POLL_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 1.0, 60.0
LEASE_S, RENEW_S = 90.0, 30.0
LAST_WORDS_S = 5.0
HOUR_S = 3600.0
ARCHIVES = "audit"
"""The folder of archives in the data folder."""
_numbers = count(1)


class Forwarder:
    """Tells the trail. Only one of an index works at a time; others wait for its lease to end."""

    def __init__(self, settings: Settings, database: Database, at_once: int = AT_ONCE) -> None:
        self._settings = settings
        self._syslog = settings.audit.syslog
        self._database = database
        self._at_once = at_once
        self._trail = Trail(database, self._syslog.archives or settings.data_dir / ARCHIVES)
        self._host = socket.gethostname()
        self._me = f"{self._host}/{os.getpid()}/{next(_numbers)}"
        self._alone = settings.database_url.startswith("sqlite")

    def run(self, stop: threading.Event) -> None:
        """Tell what happens until `stop` is set."""
        failures = 0
        while not stop.is_set():
            try:
                idle_s = 0.0 if self.step(self._database.now()) else POLL_S
                failures = 0
            except (NotTaken, StorageError) as error:
                failures += 1
                idle_s = doubling_s(FIRST_PAUSE_S, failures, LONGEST_PAUSE_S)
                if failures == 1:
                    log.warning("audit messages wait", reason=str(error))
            stop.wait(idle_s)

    def finish(self, now: float) -> None:
        """Tell everything that is there, also what is not complete, and the end of the trail; without patience."""
        limit = time.monotonic() + LAST_WORDS_S
        try:
            while self.step(now, last=True) and time.monotonic() < limit:
                pass
        except (NotTaken, StorageError) as error:
            log.warning("the end of the audit trail was not told", reason=str(error))

    def step(self, now: float, *, last: bool = False) -> bool:
        """Tell the next piece of the trail. last: with all that was gathered, and the head.

        Returns False if nothing is left for now, or another process does it.
        Raises NotTaken if the receiver is away or did not read all; StorageError.
        """
        place = self._claim(now)
        if place is None:
            return False
        try:
            return self._tell(place, now, last=last)
        except (NotTaken, StorageError) as error:
            self._note_failure(error, now)
            raise

    def _claim(self, now: float) -> Place | None:
        """The place, with a lease on it; None if another process has one. It is written only if that changes it."""
        with self._database.read() as tx:
            place = forwarding.place(tx)
        if place is not None and place.holder == self._me and (self._alone or self._is_fresh(place, now)):
            return place
        with self._database.transaction() as tx:
            place = forwarding.place(tx)
            if place is None:
                number, digest = (0, audit.FIRST) if self._syslog.from_the_beginning else audit.head(tx)
                return forwarding.keep(tx, Place(number, digest, holder=self._me, until=now + LEASE_S))
            if place.holder != self._me and not self._alone and now < place.until <= now + LEASE_S:
                return None
            return forwarding.keep(tx, replace(place, holder=self._me, until=now + LEASE_S))

    def _is_fresh(self, place: Place, now: float) -> bool:
        """Whether the lease need not be renewed yet."""
        return now + LEASE_S - RENEW_S < place.until <= now + LEASE_S

    def _tell(self, place: Place, now: float, *, last: bool) -> bool:
        lost = self._what_is_lost(place, now)
        if lost is not None:
            return lost
        pending, rows = self._planned(place, now, last=last)
        if not rows and not pending["quiet"] and not pending["head"]:
            return False
        gathering = Gathering(place.gathered, self._syslog.gather_s)
        with self._database.read() as tx:
            telling = _Telling(Teller(self._settings, self._host, tx), gathering)
            messages = list(telling.of(place, rows, pending))
        again = place.pending is not None
        if messages:
            place = place if again else self._keep(replace(place, pending=pending))
            lines = [framed(self._syslog, self._host, at, content) for at, content in messages]
            syslog.deliver(self._syslog, lines, LAST_WORDS_S if last else None)
        number, digest = (rows[-1]["id"], rows[-1]["hash"]) if rows else (place.number, place.hash)
        head_at = pending["now"] if pending["head"] else place.head_at
        self._keep(Place(number, digest, gathering.kept(), None, head_at, self._me, place.until, raw=place.raw))
        return again or len(rows) == self._at_once

    def _planned(self, place: Place, now: float, *, last: bool) -> tuple[dict[str, Any], list[Row]]:
        """What to tell next: what is pending already, as it was, or the next rows."""
        if place.pending is not None:
            pending = dict(place.pending)
            return pending, self._trail.between(place.number, pending["upto"])
        rows = self._trail.after(place.number, self._at_once)
        reached = len(rows) < self._at_once
        upto = rows[-1]["id"] if rows else place.number
        head = reached and upto > 0 and (last or abs(now - place.head_at) >= self._syslog.head_hours * HOUR_S)
        quiet = reached and any(last or abs(now - one["ended"]) >= self._syslog.gather_s for one in place.gathered)
        quiet = quiet or (last and bool(rows))
        return {"upto": upto, "now": now, "head": head, "quiet": quiet, "last": last}, rows

    def _what_is_lost(self, place: Place, now: float) -> bool | None:
        """If the trail no longer has what was told last: say so, and go on from its end. None if it has."""
        with self._database.read() as tx:
            if forwarding.last_row_is_there(tx, place):
                return None
            head = audit.head(tx)
            alert = Teller(self._settings, self._host, tx).cut(place.number, place.hash, now)
        log.error("the audit trail was cut, written anew or restored; it is told from its end on", row=place.number)
        syslog.deliver(self._syslog, [framed(self._syslog, self._host, now, alert)])
        self._keep(Place(*head, holder=self._me, until=place.until, raw=place.raw))
        return True

    def _keep(self, place: Place) -> Place:
        with self._database.transaction() as tx:
            return forwarding.keep(tx, place)

    def _note_failure(self, error: Exception, now: float) -> None:
        """Keep why it does not get on, for `status`."""
        try:
            with self._database.transaction() as tx:
                place = forwarding.place(tx)
                if place is not None and place.holder == self._me and place.error != str(error):
                    since = place.failed_at if place.failed_at is not None else now
                    forwarding.keep(tx, replace(place, error=str(error), failed_at=since))
        except (StorageError, StaleLease):
            pass  # the index is away: there is no place to note it


class _Telling:
    """Makes the messages of a piece of the trail, each with the time of what it tells."""

    def __init__(self, teller: Teller, gathering: Gathering) -> None:
        self._teller = teller
        self._gathering = gathering

    def of(self, place: Place, rows: list[Row], pending: dict[str, Any]) -> Iterator[tuple[float, bytes]]:
        now, head = pending["now"], (place.number, place.hash)
        broken = {row["id"]: reason for row, reason in forwarding.breaks(place.hash, rows)}
        for row in rows:
            if row["id"] in broken:
                yield row["at"], self._teller.broken(row, broken[row["id"]])
            yield from self._of_row(row)
            head = row["id"], row["hash"]
        if pending["quiet"]:
            over = self._gathering.all() if pending["last"] else self._gathering.quiet(now)
            yield from ((one.ended, self._teller.transfer(one)) for one in over)
        if pending["head"]:
            yield now, self._teller.head(*head, now)

    def _of_row(self, row: Row) -> Iterator[tuple[float, bytes]]:
        detail = detail_of(row)
        yield from ((one.ended, self._teller.transfer(one)) for one in self._gathering.over(row))
        kind = counterpart(row, detail)
        if kind is None:
            return
        if not kind.folded:
            yield row["at"], self._teller.row(row, detail, kind)
            return
        times = 1 if row["sop_uid"] else int(detail.get("times") or 1)
        long = self._gathering.add(row, (kind.action, kind.outcome), times, self._teller.class_of)
        yield from ((one.ended, self._teller.transfer(one)) for one in long)


def run(settings: Settings, database: Database, stop: threading.Event, *, finish: bool = True) -> None:
    """Tell the trail until `stop` is set. finish: with its end, see `Forwarder.finish`."""
    forwarder = Forwarder(settings, database)
    log.info("audit messages are sent", host=settings.audit.syslog.host, port=settings.audit.syslog.port)
    forwarder.run(stop)
    if finish:
        forwarder.finish(time.time())
