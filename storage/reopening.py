"""A closed series starts over as its next revision, because of a late instance or an operator.

Each revision is analysed by jobs of its own. The report of the last one stands until the new report names it as its
predecessor, so that two reports never contradict each other.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, exists, select, update

from config.reasons import ReasonCode
from storage import deliveries, jobs, results
from storage.errors import CorruptFile, IllegalMove
from storage.jobs import ModelRef, refusal_of
from storage.models import instances, rejections, series
from storage.moves import move
from storage.series_state import SERIES, Selection, SeriesState

BY_OPERATOR = "an operator"
# What a person may overrule; all other refusals say that the images are not fit or not complete.
OVERRULED = frozenset({ReasonCode.NOT_WANTED, ReasonCode.PASSED_OVER, ReasonCode.MODEL_SUSPENDED})


def reopen(tx: Connection, series_pk: int, now: float, reason: str) -> int:
    """CLOSED to OPEN, as a new revision. Returns its number.

    What was made of the old one is superseded: its results, its unfinished jobs, and deliveries that have not arrived.
    Raises IllegalMove when the series is open.
    """
    revision = int(SERIES.row(tx, series_pk)["revision"]) + 1
    values = {"revision": revision, "closed_at": None, "refusal_code": None, "refusal_text": None, "selection": None}
    detail = {"reason": reason, "revision": revision}
    move(tx, SERIES, series_pk, SeriesState.CLOSED, SeriesState.OPEN, now, values=values, detail=detail)
    why = f"{reason} opened the series again"
    jobs.supersede_unfinished(tx, series_pk, now, why)
    deliveries.supersede_unsent(tx, series_pk, now, why)
    results.supersede(tx, series_pk, now)
    return revision


def analyse_again(
    tx: Connection, series_pk: int, now: float, model: ModelRef, priority: int = 0, beside: Sequence[ModelRef] = ()
) -> int:
    """Queue a closed series for another analysis, as a new revision of the same instances. Returns the job's id.

    model: the one to use. It may be the same one, for example after the report's settings changed.
    beside: the others that report; their results start over too.
    A series that was refused as incomplete is refused again. In a study whose best series is chosen, this one is.
    Raises NotFound; IllegalMove when the series is still open; CorruptFile when images of it are gone.
    """
    if SERIES.row(tx, series_pk)["state"] != SeriesState.CLOSED:
        raise IllegalMove(f"series {series_pk} still waits for images; it is analysed when it is complete")
    is_gone = exists().where(instances.c.series_pk == series_pk, instances.c.gone_at.is_not(None))
    if tx.scalar(select(is_gone)):
        raise CorruptFile(f"series {series_pk}: some of its images are no longer stored; have it sent again")
    former = tx.execute(select(series).where(series.c.id == series_pk)).one()
    if former.imported:
        raise IllegalMove(f"series {series_pk} was imported for a batch, and is analysed by batches alone")
    reopen(tx, series_pk, now, BY_OPERATOR)
    _overrule_rejections(tx, former.series_instance_uid)
    refused = former.refusal_code is not None and former.refusal_code not in {*OVERRULED, ReasonCode.WITHDRAWN}
    values = {
        "closed_at": now,
        "set_at": now,
        "refusal_code": former.refusal_code if refused else None,
        "refusal_text": former.refusal_text if refused else None,
    }
    detail = {"completeness": former.completeness, "reason": "analysed again by an operator"}
    move(tx, SERIES, series_pk, SeriesState.OPEN, SeriesState.CLOSED, now, values=values, detail=detail)
    if former.selection is not None:
        tx.execute(update(series).where(series.c.id == series_pk).values(selection=Selection.CHOSEN.value))
    refusal = refusal_of(former.refusal_code, former.refusal_text) if refused else None
    job_id = jobs.enqueue(tx, series_pk, now, former.instances_digest, model, refusal, priority)
    for other in beside:
        jobs.enqueue(tx, series_pk, now, former.instances_digest, other, refusal, priority)
    return job_id


def _overrule_rejections(tx: Connection, series_uid: str) -> None:
    """A person has images analysed although they were rejected: that holds until they are rejected anew."""
    mine = (rejections.c.series_instance_uid == series_uid, rejections.c.standing == "STANDS")
    tx.execute(update(rejections).where(*mine).values(standing="OVERRULED"))
