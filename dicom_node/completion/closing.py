"""Closes series that are complete: by the PACS's own count if one is configured, else after the quiet time.

`inference` judges geometry later, independently of both. Deadlines, instances and earlier attempts are in the database,
so a restart forgets nothing.

Everything that repeats has an end: the quiet time ends the questions, `completion.fetch_attempts` ends the fetches.
The exception is a series that cannot be decided for a reason of our own, such as a full disk. It is looked at until
that is over, at waits that grow to ten minutes.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import structlog
from sqlalchemy import Connection

from config.reasons import ReasonCode, Refusal
from config.settings import Settings
from dicom_node.completion.asking import QueriedPacs, subject
from dicom_node.completion.rejection_notes import Note, Unreadable, heed, notes_of
from dicom_node.completion.retrieve import held_instances
from dicom_node.completion.rule import PACS_LIST, Action, Decision, Said, decide, missing_sentence, next_look
from dicom_node.receiver.negotiation import IMAGE_CLASSES
from dicom_node.scu.patient_id import patient_id_for_pacs
from dicom_node.scu.query import SeriesKey
from storage import audit, efforts, quiet_time, series
from storage.database import Database
from storage.efforts import Effort
from storage.errors import NotDueYet, StoreUnavailable
from storage.files import FileStore
from storage.jobs import Models
from storage.quiet_time import DueSeries
from storage.recording import KEY_OBJECTS, lock_recording

log = structlog.get_logger()

NOT_IMAGES = Refusal(ReasonCode.NOT_IMAGES, "The series holds results, not CT images; it is kept and not analysed.")
NOT_WANTED = Refusal(ReasonCode.NOT_WANTED, "The filter of its source leaves this series out.")
WORKERS = 4
"""Series that are asked about at the same time: a slow PACS must not hold up the others for long."""
AFTER_ERROR_S, LONGEST_AFTER_ERROR_S = 5.0, 600.0
"""Waits for a series that could not be decided for a reason of our own."""
NOTHING_ASKED = Said(None)


class Completion:
    """Closes series that are complete, and queues their analysis.

    study_complete: called when nothing more of a study is waited for, so that its best series may be chosen.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        files: FileStore,
        study_complete: Callable[[], None] = lambda: None,
    ) -> None:
        self._study_complete = study_complete
        self._settings = settings
        self._rules = settings.completion
        self._database = database
        self._files = files
        asked = settings.queried_destination
        self._pacs = QueriedPacs(settings, asked, database, files) if asked else None
        self._errors: dict[int, tuple[int, float]] = {}
        self._in_flight: set[int] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="completion")

    def stop(self) -> None:
        """Finish the questions under way, and ask no further ones."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def close_due_series(self, models: Models, now: float) -> None:
        """Look at every series that may be complete; those about which no PACS is asked are closed on return.

        models: what they are queued for. now: Unix seconds.
        """
        with self._database.transaction() as tx:
            due = quiet_time.due_series(tx, now)
        for one in due:
            if self._pacs is None or one.canary or self._unwanted(one):
                self._close_quiet(one, models, now)
        if self._pacs is None:
            return
        with self._database.read() as tx:
            quiet = quiet_time.quiet_series(tx, now, self._rules.settle_s)
            tried = efforts.all_efforts(tx)
        candidates = {one.series_pk: one for one in (*quiet, *due) if not one.canary and not self._unwanted(one)}
        for pk, one in candidates.items():
            if max(_effort(tried.get(pk), one).next_at, self._errors.get(pk, (0, 0.0))[1]) <= now:
                self._submit(one, models, now, self._pacs)

    def _close_quiet(self, one: DueSeries, models: Models, now: float) -> None:
        """Close a series about which no PACS is asked."""
        decision = decide(one.instance_count, None, asked=False, quiet=True, may_fetch=False)
        try:
            self._close(one, models, now, decision)
        except StoreUnavailable as error:  # of a series with rejection notes, which are read
            log.warning("the file store is away", series=one.series_pk, reason=str(error))

    def _unwanted(self, one: DueSeries) -> Refusal | None:
        """Why a series is kept without being analysed, and no PACS is asked about it; None for the others."""
        if one.canary:
            return None  # whatever the source that the node takes for itself may send
        source = self._settings.source(one.calling_ae)
        if source is None:
            return None
        if {"results", "rejections"} & set(source.classes):
            with self._database.read() as tx:
                if not series.sop_classes(tx, one.series_pk) & IMAGE_CLASSES:
                    return NOT_IMAGES
        return None if source.series.wants(one.description, one.body_part) else NOT_WANTED

    def _submit(self, one: DueSeries, models: Models, now: float, pacs: QueriedPacs) -> None:
        with self._lock:
            if one.series_pk in self._in_flight:
                return
            self._in_flight.add(one.series_pk)
        began = time.monotonic()

        def clock() -> float:
            return now + time.monotonic() - began

        def done(look: Future[None]) -> None:
            error = None if look.cancelled() else look.exception()
            self._note_error(one.series_pk, error, clock())
            with self._lock:
                self._in_flight.discard(one.series_pk)

        look = self._pool.submit(self._look, one, models, pacs, clock)
        look.add_done_callback(done)

    def _note_error(self, series_pk: int, error: BaseException | None, now: float) -> None:
        if error is None:
            self._errors.pop(series_pk, None)
            return
        times, _ = self._errors.get(series_pk, (0, 0.0))
        wait_s = min(AFTER_ERROR_S * 2.0 ** min(times, 30), LONGEST_AFTER_ERROR_S)
        self._errors[series_pk] = times + 1, now + wait_s
        # The type and not the text: a library's message may quote patient data.
        log.error("series not decided", series=series_pk, error=type(error).__name__, again_in_s=wait_s)

    def _look(self, one: DueSeries, models: Models, pacs: QueriedPacs, clock: Callable[[], float]) -> None:
        """Ask; fetch what is missing and ask again, as long as that brings more; then decide."""
        current: DueSeries | None = one
        while current is not None:
            if self._ask_and_decide(current, models, pacs, clock):
                return
            with self._database.read() as tx:
                latest = next(
                    (s for s in quiet_time.quiet_series(tx, clock(), 0.0) if s.series_pk == one.series_pk), None
                )
            current = latest if latest and latest.instance_count > current.instance_count else None

    def _ask_and_decide(self, one: DueSeries, models: Models, pacs: QueriedPacs, clock: Callable[[], float]) -> bool:
        """One question and what follows from it. Returns True if the series is decided."""
        key = SeriesKey(self._patient_id(one), one.study_instance_uid, one.series_instance_uid)
        with self._database.read() as tx:
            held = held_instances(tx, one.series_pk)
            effort = _effort(efforts.all_efforts(tx).get(one.series_pk), one)
        next_at = next_look(one.due_at, effort.asked, clock(), self._rules.settle_s)
        effort = self._try(one, replace(effort, asked=effort.asked + 1, next_at=next_at))
        said = pacs.ask(key, len(held), clock)
        missing = said.missing(frozenset(held))
        decision = self._decide(effort, len(held), said, missing, quiet=one.due_at <= clock())
        if decision.action in (Action.CLOSE, Action.REFUSE):
            self._close(one, models, clock(), decision, said, len(held))
            if self._rules.select == "best" and said.there is not None:
                self._end_study_wait(one, key, pacs, clock)
            return True
        if decision.action == Action.FETCH and missing:
            self._try(one, replace(effort, fetched=effort.fetched + 1))
            pacs.fetch(one, key, missing, held, clock)
        elif missing is not None:
            self._try(one, replace(effort, contradicted=not missing, fetched=max(effort.fetched, bool(missing))))
        return False

    def _end_study_wait(self, one: DueSeries, key: SeriesKey, pacs: QueriedPacs, clock: Callable[[], float]) -> None:
        """If the PACS holds no CT series of the study that is not closed here, nothing more is waited for."""
        listed = pacs.ct_series(key)
        if listed is not None:
            with self._database.transaction() as tx:
                quiet_time.end_study_wait(tx, one.series_pk, listed, clock())
            self._study_complete()

    def _decide(self, effort: Effort, here: int, said: Said, missing: frozenset[str] | None, quiet: bool) -> Decision:
        return decide(
            here,
            said.there,
            asked=True,
            quiet=quiet,
            may_fetch=self._rules.retrieve != "none" and effort.fetched < self._rules.fetch_attempts,
            missing=None if missing is None else len(missing),
            contradicted=effort.contradicted,
            lacked=effort.fetched > 0,
        )

    def _try(self, one: DueSeries, effort: Effort) -> Effort:
        """Count an attempt before it is made: it counts even if the process dies during it."""
        with self._database.transaction() as tx:
            efforts.save(tx, one.series_pk, effort)
        return effort

    def _patient_id(self, one: DueSeries) -> str:
        """As the PACS knows the patient."""
        with self._database.read() as tx:
            held = [item.path for item in series.series_instances(tx, one.series_pk) if item.gone is None]
        return patient_id_for_pacs(self._settings, self._files, one.patient_id, held[0]) if held else one.patient_id

    def _close(
        self,
        one: DueSeries,
        models: Models,
        now: float,
        decision: Decision,
        said: Said = NOTHING_ASKED,
        here: int = 0,
    ) -> None:
        closing = self._closing(one, models, decision, said, here)
        notes = self._notes(one)
        try:
            with self._database.transaction() as tx:
                if notes:
                    lock_recording(tx)  # before any series: the notes' series and those that they reject
                _note_what_was_said(tx, one, now, decision, said)
                efforts.forget(tx, one.series_pk)
                series.close_series(tx, one.series_pk, now, closing)
                for note in notes:
                    heed(tx, note, one, now)
        except NotDueYet:
            return  # an instance came while we asked: the series is looked at again
        log.info(
            "series closed",
            series=one.series_pk,
            instances=one.instance_count,
            completeness=decision.completeness,
            refused=closing.refusal.code if closing.refusal else None,
        )

    def _notes(self, one: DueSeries) -> list[Note | Unreadable]:
        """The rejection notes in a series, of the sources that may send any."""
        senders = {source.ae_title for source in self._settings.sources if "rejections" in source.classes}
        if not senders or one.modality != KEY_OBJECTS:
            return []
        with self._database.read() as tx:
            held = series.series_instances(tx, one.series_pk, senders)
        return notes_of(held, self._files)

    def _closing(self, one: DueSeries, models: Models, decision: Decision, said: Said, here: int) -> series.Closing:
        unwanted, source = self._unwanted(one), self._settings.source(one.calling_ae)
        chosen = replace(models, shadow=None) if one.canary else models.of(one.calling_ae)
        if unwanted is None and chosen is None:
            unwanted = Refusal(ReasonCode.NOT_WANTED, "No model analyses series of this source.")
        refusal = unwanted
        if refusal is None and decision.action == Action.REFUSE:
            refusal = Refusal(ReasonCode.MISSING_SLICES, missing_sentence(here, said))
        return series.Closing(
            None if unwanted or chosen is None else chosen.reporting,
            decision.completeness,
            len(said.listed or ()) if decision.completeness == PACS_LIST else said.there,
            refusal,
            if_count=one.instance_count,
            shadow=chosen.shadow if chosen else None,
            beside=chosen.beside if chosen else (),
            priority=source.priority if source else 0,
            to_choose=self._rules.select == "best" and not one.canary,
        )


def _effort(tried: Effort | None, one: DueSeries) -> Effort:
    """What was tried for the series as it is now; a new instance starts over."""
    return tried if tried and tried.instance_count == one.instance_count else Effort(one.instance_count)


def _note_what_was_said(tx: Connection, one: DueSeries, now: float, decision: Decision, said: Said) -> None:
    """Audit an answer that did not decide by itself: none, or one that contradicts itself."""
    if said.silence:
        audit.append(
            tx, now, "series.count-unknown", subject(one), outcome="FELL_BACK", detail={"reason": said.silence}
        )
    elif said.listed is not None and said.count != len(said.listed):
        sentence = f"The PACS counts {said.count} instances and lists {len(said.listed)}, also when asked again."
        believed = "LIST_BELIEVED" if decision.completeness == PACS_LIST else str(decision.action)
        audit.append(tx, now, "series.count-contradicted", subject(one), outcome=believed, detail={"reason": sentence})
