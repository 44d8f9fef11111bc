"""When is a series complete: the PACS's own count where one is configured, else the quiet time.

Geometry is judged later and independently of both, by `inference`. Deadlines and instances are in the database; what
this module remembers (how often a series was asked about) only bounds its own effort, and a restart may forget it.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import structlog
from sqlalchemy import Connection

from config.reasons import ReasonCode, Refusal
from config.settings import Destination, SenderSettings, Settings
from dicom_node.completion.retrieve import Retrieval, fetch, held_instances
from dicom_node.receiver.negotiation import IMAGE_CLASSES
from dicom_node.scu.association import NoContext, PeerUnavailable
from dicom_node.scu.patient_id import patient_id_for_pacs
from dicom_node.scu.query import QueryFailed, SeriesKey, querying
from storage import audit, series
from storage.database import Database
from storage.errors import NotDueYet
from storage.files import FileStore
from storage.jobs import ModelRef
from storage.pseudonyms import Pseudonyms
from storage.series import QUIET_TIME, DueSeries

log = structlog.get_logger()

PACS_COUNT = "pacs-count"
PACS_SILENT = "quiet-time-pacs-silent"
PACS_HAS_FEWER = "quiet-time-pacs-has-fewer"
NOT_IMAGES = Refusal(ReasonCode.NOT_IMAGES, "The series holds results, not CT images; it is kept and not analysed.")
NOT_WANTED = Refusal(ReasonCode.NOT_WANTED, "The filter of its source leaves this series out.")
WORKERS = 4
"""Series that are asked about at the same time: a slow PACS must not hold up the others for long."""
AFTER_ERROR_S = 5.0
"""A series that could not be decided for a reason of our own, such as a full disk, is looked at again after this."""
NO_PEER = (PeerUnavailable, NoContext, QueryFailed)


class Action(StrEnum):
    """What to do about an open series."""

    WAIT = "WAIT"
    FETCH = "FETCH"
    CLOSE = "CLOSE"
    REFUSE = "REFUSE"


@dataclass(frozen=True)
class Decision:
    """An action. completeness: for CLOSE and REFUSE, how it was decided."""

    action: Action
    completeness: str = QUIET_TIME


def decide(here: int, there: int | None, asked: bool, quiet: bool, may_fetch: bool) -> Decision:
    """The rule.

    here: instances that the node holds. there: that the PACS holds, None where it could not say.
    asked: a PACS is configured to be asked. quiet: the series' whole quiet time is over.
    may_fetch: missing instances may be fetched, and were not tried for too often yet.
    """
    if asked and there is not None and there == here:
        return Decision(Action.CLOSE, PACS_COUNT)
    if asked and there is not None and there > here:
        if may_fetch:
            return Decision(Action.FETCH)
        return Decision(Action.REFUSE, PACS_COUNT) if quiet else Decision(Action.WAIT)
    if not quiet:
        return Decision(Action.WAIT)
    if not asked:
        return Decision(Action.CLOSE, QUIET_TIME)
    # Fewer there than here: another PACS than the one that sent, or its index is behind. It cannot tell us the end.
    return Decision(Action.CLOSE, PACS_SILENT if there is None else PACS_HAS_FEWER)


@dataclass
class Effort:
    """How often a series with this many instances was asked about and fetched for. next_at: Unix seconds."""

    instance_count: int
    asked: int = 0
    fetched: int = 0
    next_at: float = 0.0


class Completion:
    """Closes series that are complete, and queues their analysis."""

    def __init__(self, settings: Settings, database: Database, files: FileStore) -> None:
        self._settings = settings.completion
        self._node_settings = settings
        self._source = settings.source
        self._pacs = settings.destination(settings.completion.query_destination)
        self._node_ae = settings.receiver.ae_title
        # A query that may take as long as a transfer would hold up the series' neighbours.
        self._caller: SenderSettings = settings.sender.model_copy(
            update={"response_timeout_s": settings.completion.query_timeout_s}
        )
        self._database = database
        self._files = files
        self._efforts: dict[int, Effort] = {}
        self._in_flight: set[int] = set()
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._silence = ""
        self._shadow: ModelRef | None = None
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="completion")

    def stop(self) -> None:
        """Finish what is being asked about, and ask no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def close_due_series(self, model: ModelRef, now: float, shadow: ModelRef | None = None) -> None:
        """Look at every series that may be complete; those about which no PACS is asked are closed on return.

        model: what they are queued for. now: Unix seconds. shadow: what analyses them too, without being reported.
        """
        self._shadow = shadow
        with self._database.transaction() as tx:
            due = series.due_series(tx, now)
        for one in due:
            if self._pacs is None or self._unwanted(one):
                decision = decide(one.instance_count, None, asked=False, quiet=True, may_fetch=False)
                self._close(one, model, now, decision)
        if self._pacs is None:
            return
        with self._database.read() as tx:
            quiet = series.quiet_series(tx, now, self._settings.settle_s)
        candidates = {one.series_pk: one for one in (*quiet, *due) if not self._unwanted(one)}
        self._forget_all_but(set(candidates))
        for one in candidates.values():
            if self._effort(one).next_at <= now:
                self._submit(one, model, now, self._pacs)

    def _unwanted(self, one: DueSeries) -> Refusal | None:
        """Why a series is kept without being analysed, and no PACS is asked about it; None for the others."""
        source = self._source(one.calling_ae)
        if source is None:
            return None
        if "results" in source.classes:
            with self._database.read() as tx:
                if not series.sop_classes(tx, one.series_pk) & IMAGE_CLASSES:
                    return NOT_IMAGES
        return None if source.series.wants(one.description, one.body_part) else NOT_WANTED

    def _effort(self, one: DueSeries) -> Effort:
        """What was tried for the series as it is now; another instance makes a new start."""
        with self._lock:
            effort = self._efforts.get(one.series_pk)
            if effort is None or effort.instance_count != one.instance_count:
                effort = self._efforts[one.series_pk] = Effort(one.instance_count)
            return effort

    def _forget_all_but(self, series_pks: set[int]) -> None:
        with self._lock:
            for pk in self._efforts.keys() - series_pks - self._in_flight:
                del self._efforts[pk]

    def _submit(self, one: DueSeries, model: ModelRef, now: float, pacs: Destination) -> None:
        with self._lock:
            if one.series_pk in self._in_flight:
                return
            self._in_flight.add(one.series_pk)
        began = time.monotonic()

        def clock() -> float:
            return now + time.monotonic() - began

        def done(look: Future[None]) -> None:
            with self._lock:
                self._in_flight.discard(one.series_pk)
            error = None if look.cancelled() else look.exception()
            if error is not None:
                # The type and not the text: a library's message may quote patient data.
                log.error("series not decided", series=one.series_pk, error=type(error).__name__)
                self._effort(one).next_at = clock() + AFTER_ERROR_S

        look = self._pool.submit(self._look, one, model, pacs, clock)
        look.add_done_callback(done)

    def _look(self, one: DueSeries, model: ModelRef, pacs: Destination, clock: Callable[[], float]) -> None:
        """Ask; fetch what is missing and ask again, as long as that brings more; then decide."""
        key = SeriesKey(self._patient_id(one), one.study_instance_uid, one.series_instance_uid)
        current: DueSeries | None = one
        while current is not None:
            effort = self._effort(current)
            held = self._held(current)
            there, silence = self._count(pacs, key, clock)
            may_fetch = self._settings.retrieve != "none" and effort.fetched < self._settings.fetch_attempts
            decision = decide(len(held), there, asked=True, quiet=current.due_at <= clock(), may_fetch=may_fetch)
            if decision.action in (Action.CLOSE, Action.REFUSE):
                self._close(current, model, clock(), decision, there, len(held), silence)
                return
            if decision.action == Action.FETCH:
                effort.fetched += 1
                self._fetch(current, key, held, pacs, clock)
            effort.asked += 1
            effort.next_at = _next_look(current, effort, clock(), self._settings.settle_s)
            latest = self._open(current.series_pk, clock())
            current = latest if latest and latest.instance_count > current.instance_count else None

    def _patient_id(self, one: DueSeries) -> str:
        """As the PACS knows the patient."""
        with self._database.read() as tx:
            held = [item.path for item in series.series_instances(tx, one.series_pk) if item.gone is None]
        return patient_id_for_pacs(self._node_settings, one.patient_id, held[0]) if held else one.patient_id

    def _open(self, series_pk: int, now: float) -> DueSeries | None:
        with self._database.read() as tx:
            return next((s for s in series.quiet_series(tx, now, 0.0) if s.series_pk == series_pk), None)

    def _held(self, one: DueSeries) -> dict[str, str]:
        with self._database.read() as tx:
            return held_instances(tx, one.series_pk)

    def _count(self, pacs: Destination, key: SeriesKey, clock: Callable[[], float]) -> tuple[int | None, str]:
        """How many instances the PACS holds, or None and why it could not say."""
        if clock() < self._silent_until:
            return None, f"shortly before: {self._silence}"
        try:
            with querying(pacs, self._caller) as query:
                return query.count(key), ""
        except NO_PEER as error:
            self._silent_until = clock() + self._settings.silence_s
            self._silence = str(error)
            log.warning("the PACS cannot count", destination=pacs.name, detail=self._silence)
            return None, str(error)

    def _fetch(
        self, one: DueSeries, key: SeriesKey, held: dict[str, str], pacs: Destination, clock: Callable[[], float]
    ) -> None:
        """Get the instances that the PACS holds and the node does not."""
        try:
            with querying(pacs, self._caller) as query:
                missing = query.instances(key) - held.keys()
            how = self._settings.retrieve
            retrieve = Retrieval(
                one.series_pk,
                key,
                missing,
                frozenset(held.values()),
                one.quiet_s,
                self._node_ae,
                Pseudonyms(self._node_settings.storage.pseudonym_key.get_secret_value()),
            )
            got = fetch(pacs, self._caller, retrieve, self._database, self._files, clock, move=how == "move")
            outcome = "OK" if got == len(missing) else "PARTLY"
            detail: dict[str, object] = {"how": f"c-{how}", "missing": len(missing), "fetched": got}
        except NO_PEER as error:
            outcome, detail = "FAILED", {"reason": str(error)}
        log.info("missing instances asked for", series=one.series_pk, outcome=outcome.lower(), **detail)
        with self._database.transaction() as tx:
            audit.append(
                tx,
                clock(),
                "series.fetch",
                audit.Subject(
                    series_uid=key.series_instance_uid, study_uid=key.study_instance_uid, patient_id=one.patient_id
                ),
                peer=audit.Peer(ae_title=pacs.ae_title, address=pacs.host),
                outcome=outcome,
                detail=detail,
            )

    def _close(
        self,
        one: DueSeries,
        model: ModelRef,
        now: float,
        decision: Decision,
        there: int | None = None,
        here: int = 0,
        silence: str = "",
    ) -> None:
        unwanted, source = self._unwanted(one), self._source(one.calling_ae)
        refusal = unwanted
        if refusal is None and decision.action == Action.REFUSE:
            refusal = Refusal(ReasonCode.MISSING_SLICES, missing_sentence(here, there))
        try:
            with self._database.transaction() as tx:
                if silence:
                    _note_silence(tx, one, now, silence)
                series.close_series(
                    tx,
                    one.series_pk,
                    now,
                    series.Closing(
                        None if unwanted else model,
                        decision.completeness,
                        there,
                        refusal,
                        if_count=one.instance_count,
                        shadow=self._shadow,
                        priority=source.priority if source else 0,
                        to_choose=self._settings.select == "best",
                    ),
                )
        except NotDueYet:
            return  # an instance came while we asked: the series is looked at again
        log.info(
            "series closed",
            series=one.series_pk,
            instances=one.instance_count,
            completeness=decision.completeness,
            refused=refusal.code if refusal else None,
        )


def missing_sentence(here: int, there: int | None) -> str:
    """Why a series is refused, for a person."""
    return (
        f"The PACS holds {there} instances of this series; {here} of them are here and the others could not be fetched."
    )


def _next_look(one: DueSeries, effort: Effort, now: float, settle_s: float) -> float:
    """Ask at growing distances, but always when the quiet time is over."""
    wait_until = now + settle_s * 2.0 ** min(effort.asked, 6)
    return min(wait_until, one.due_at) if one.due_at > now else wait_until


def _note_silence(tx: Connection, one: DueSeries, now: float, reason: str) -> None:
    audit.append(
        tx,
        now,
        "series.count-unknown",
        audit.Subject(series_uid=one.series_instance_uid, study_uid=one.study_instance_uid, patient_id=one.patient_id),
        outcome="FELL_BACK",
        detail={"reason": reason},
    )
