"""The models in use are looked at: what each is compared with is frozen once, then each look raises and ends alarms.

The statistics are in `dicom_node/watch/`, the facts and the state in the index. A look changes no result.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from datetime import UTC, datetime
from itertools import islice

import structlog
from sqlalchemy import Connection, RowMapping

from config.reasons import ReasonCode
from config.settings import Settings
from dicom_node.analysis.current_model import current_models, reporting_models
from dicom_node.errors import NodeError
from dicom_node.watch.assessment import Assessment, Level
from dicom_node.watch.reference import WHOLE, Reference, TooFewStudies, gathered
from dicom_node.watch.service import delivery_age, troubles
from dicom_node.watch.shadow import against_shadow
from dicom_node.watch.studies import Study
from dicom_node.watch.thresholds import FEWEST, LOOK_BACK_STUDIES, REFERENCE_PERIOD, REFERENCE_STUDIES, WINDOW
from dicom_node.watch.watches import assess, in_window
from storage import shadow_pairs, watch_alarms, watch_facts, watch_state, watch_work
from storage.database import Database
from storage.errors import AlteredReference
from storage.jobs import ModelRef
from storage.watch_state import Assessed

log = structlog.get_logger()

HOUR_S = 3600.0
# What a person decided is not what the scanners or the model changed.
NOT_WATCHED = frozenset({ReasonCode.MODEL_SUSPENDED})
KEPT = (*(field.name for field in fields(watch_facts.Facts)), "sex")
SERVED = ("queue_s", "retried", "undelivered")


class Watching:
    """Looks at the models when it is time, however often the node was started in between."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database

    def step(self) -> None:
        """Look at every model in use, if the last look is long enough ago."""
        now, every_s = self._database.now(), self._settings.watch.every_hours * HOUR_S
        with self._database.read() as tx:
            last = watch_state.looked_at(tx)
        # A clock that was ahead must not put the next look off.
        if last is None or not 0 <= now - last < every_s:
            look(self._settings, self._database, now)


def look(settings: Settings, database: Database, now: float) -> None:
    """Look at every model that reports. Alarms of others end. Raises ModelError if a model cannot be read."""
    models = reporting_models(settings)
    with database.transaction() as tx:
        for alarm in watch_alarms.standing(tx):
            if alarm.model_digest not in {model.digest for model in models}:
                watch_alarms.end(tx, alarm, now, "the model is no longer in use")
    # The stack runs all of them, and raises what one raised only then.
    with ExitStack() as stack:
        for model in reversed(models):
            stack.callback(_look_at, settings, database, model, now)
    with database.transaction() as tx:
        watch_state.note_look(tx, now)


def _look_at(settings: Settings, database: Database, model: ModelRef, now: float) -> None:
    most = settings.watch.most_studies
    try:
        with database.read() as tx:
            reference = reference_of(tx, model.digest)
    except AlteredReference as error:
        altered = Assessed("reference", "digest", "", Level.ALARM.value, "", None, None, f"{error}.")
        with database.transaction() as tx:
            watch_alarms.settle(tx, model, [altered], now, whole=False)
        return
    if reference is None:
        _begin(database, model, most, now)
        return
    with database.read() as tx:
        studies = recent(tx, model.digest, now, most)
        served = list(_served(tx, settings, model, studies, now))
    assessed = [_stored(one) for one in (*assess(reference, studies, moment(now)), *served)]
    with database.transaction() as tx:
        watch_state.keep(tx, model.digest, assessed, now)
        watch_alarms.settle(tx, model, assessed, now)
    alarms = sum(one.level == Level.ALARM for one in assessed)
    log.info("a model was looked at", model=f"{model.name} {model.version}", watches=len(assessed), alarms=alarms)


def _served(
    tx: Connection, settings: Settings, model: ModelRef, studies: list[Study], now: float
) -> Iterator[Assessment]:
    """What is compared with no reference: failures, what waits for a destination, the shadow model if there is one."""
    window = in_window(sorted(studies, key=lambda study: study.when), moment(now))
    since = min([now - WINDOW.total_seconds(), *(study.when.timestamp() for study in window[:1])])
    yield from troubles(window, watch_work.failed_jobs(tx, model.digest, since))
    oldest = watch_work.oldest_waiting(tx, model.digest)
    yield delivery_age(None if oldest is None else now - oldest)
    shadow = current_models(settings).shadow
    if shadow is not None:
        pairs = shadow_pairs.latest_pairs(tx, shadow.digest, model.digest, since=now - WINDOW.total_seconds())
        both = [(one.certainty, one.shadow_certainty) for one in pairs]
        yield against_shadow([(a, b) for a, b in both if a is not None and b is not None])


def reference_of(tx: Connection, model_digest: str) -> Reference | None:
    """What a model is compared with; None if that is not frozen yet. Raises AlteredReference."""
    frozen = watch_state.reference(tx, model_digest)
    return None if frozen is None else Reference.from_json(frozen.content)


def _stored(one: Assessment) -> Assessed:
    return Assessed(**{**vars(one), "level": one.level.value})


def _begin(database: Database, model: ModelRef, most: int, now: float) -> None:
    """Freeze the reference if there are enough studies, and note how many there are."""
    with database.read() as tx:
        studies, more = beginning(tx, model.digest, most)
    count = gathered(studies)
    found = Reference.of(studies) if count >= FEWEST and (more or Reference.due(studies, moment(now))) else None
    with database.transaction() as tx:
        if found is not None:
            watch_state.freeze(tx, model, found.to_json(), accepted_in(found), now)
        watch_state.keep(tx, model.digest, [_gathering(count, frozen=found is not None)], now)


def _gathering(count: int, *, frozen: bool) -> Assessed:
    if frozen:
        sentence = "The reference was frozen. The next look is the first to compare."
    elif count < FEWEST:
        sentence = f"{count} of the {FEWEST} analysed studies that a reference needs have been gathered."
    else:
        sentence = f"{count} analysed studies have been gathered, enough for a reference. It is frozen "
        sentence += f"{REFERENCE_PERIOD.days} days after the first, or when each scanner has {REFERENCE_STUDIES}."
    level = Level.OK if frozen else Level.TOO_FEW
    return Assessed("reference", "gathered", "", level.value, "studies", float(count), float(FEWEST), sentence)


def renew(
    tx: Connection, settings: Settings, model: ModelRef, by: str, reason: str, now: float, since: float | None = None
) -> str:
    """Freeze the reference of a model anew; its alarms end. Returns the digest.

    since: the moment from which studies count; None: those of the window, or as many of the latest as are needed.
    Raises NodeError if there are too few.
    """
    fewest = 0 if since is not None else FEWEST
    begin = now - WINDOW.total_seconds() if since is None else since
    studies = _latest(tx, model.digest, begin, fewest, settings.watch.most_studies)
    try:
        found = Reference.of(studies)
    except TooFewStudies as error:
        raise NodeError(f"{model.name} {model.version}: {error}") from error
    digest = watch_state.freeze(tx, model, found.to_json(), accepted_in(found), now, by, reason)
    for alarm in watch_alarms.standing(tx):
        if alarm.model_digest == model.digest:
            watch_alarms.end(tx, alarm, now, "the reference was frozen anew")
    return digest


def accepted_in(reference: Reference) -> int:
    """How many analysed studies a reference is made of."""
    return reference.baselines[WHOLE].studies


def recent(tx: Connection, model_digest: str, now: float, most: int) -> list[Study]:
    """The studies of the window, or so many as `assess` asks for, among a model's latest `most` results."""
    return _latest(tx, model_digest, now - WINDOW.total_seconds(), LOOK_BACK_STUDIES, most)


def _latest(tx: Connection, model_digest: str, since: float, fewest: int, most: int) -> list[Study]:
    """A model's latest studies: those since a moment, and before it until `fewest` of them were analysed.

    most: rows that are read. A long suspension or a mass re-analysis leaves more than that without a study in them.
    """
    found, accepted = list[Study](), 0
    for row in islice(watch_facts.latest(tx, model_digest), most):
        if row["at"] < since and accepted >= fewest:
            break
        studies = _studies(row)
        found += studies
        accepted += sum(study.accepted for study in studies)
    return found


def beginning(tx: Connection, model_digest: str, most: int) -> tuple[list[Study], bool]:
    """The studies of a model's first `most` results, and whether there may be more than are read.

    If those are too few for a reference, because all were replaced or refused, the studies of the latest.
    """
    studies, more = list[Study](), True
    for read in (watch_facts.first, watch_facts.latest):
        rows = list(islice(read(tx, model_digest), most))
        studies, more = [study for row in rows for study in _studies(row)], len(rows) == most
        if not more or gathered(studies) >= FEWEST:
            break
    return studies, more


def _studies(row: RowMapping) -> list[Study]:
    """The study of a row, unless a later result replaces it or it is not to be watched."""
    reason = row["reason_code"] or ""
    if row["superseded_at"] is not None or reason in NOT_WATCHED:
        return []
    known = {name: row[name] for name in (*KEPT, *SERVED)}
    return [Study(when=moment(row["at"]), reason=reason, turnaround_s=row["to_delivery_s"], **known)]


def moment(seconds: float) -> datetime:
    """A moment of the index as `dicom_node/watch/` wants it."""
    return datetime.fromtimestamp(seconds, UTC)
