"""Instances that this node refused: remembered, because a series is incomplete without them.

An instance that comes after all needs no mark. The index is asked which are still missing when a series is closed, so
receiving costs nothing.
"""

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, exists, insert, or_, select, update

from config.reasons import ReasonCode, Refusal
from storage import audit
from storage.errors import NotFound
from storage.models import instances, refused_instances, series
from storage.recording import lock_recording
from storage.reopening import reopen
from storage.series_state import SeriesState

AUDIT_AGAIN_S = 60.0
"""A repeated refusal is only counted; after this long it gets another audit row."""


@dataclass(frozen=True)
class RefusedInstance:
    """An instance that was offered and not acknowledged.

    sop_instance_uid, series_instance_uid, study_instance_uid, patient_id: as far as they could be read, else empty.
    status: four hexadecimal digits of the DIMSE status, or "ABORT". reason: without patient data.
    wanted: False if a rule of the site refuses it, so that nothing is missing without it.
    """

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    status: str
    reason: str
    calling_ae: str
    address: str
    wanted: bool = True


def record(tx: Connection, refused: RefusedInstance, now: float) -> None:
    """Remember a refusal, with an audit row. A closed series that lacks the instance is opened again."""
    lock_recording(tx)
    held = tx.execute(select(refused_instances).where(*_same(refused))).mappings().first()
    if held is None:
        tx.execute(insert(refused_instances).values(**_row(refused, now), standing=_standing(tx, refused)))
    else:
        values = {"times": held["times"] + 1, "last_at": now, "status": refused.status}
        tx.execute(update(refused_instances).where(refused_instances.c.id == held["id"]).values(values))
    if held is None or now - held["last_at"] >= AUDIT_AGAIN_S or now < held["last_at"]:
        _note(tx, refused, now, 1 if held is None else held["times"] + 1)
    if refused.series_instance_uid and refused.sop_instance_uid in _missing(tx, refused.series_instance_uid):
        _reopen(tx, refused.series_instance_uid, now, to_analyse=True)


def why_incomplete(tx: Connection, series_uid: str) -> Refusal | None:
    """Why a series may not be analysed: instances of it were refused and did not come again. None if it lacks none."""
    missing = _missing(tx, series_uid)
    if not missing:
        return None
    reason, _ = Counter(missing.values()).most_common(1)[0]
    more = "" if len(set(missing.values())) == 1 else ", among other reasons"
    count = "1 instance" if len(missing) == 1 else f"{len(missing)} instances"
    return Refusal(
        ReasonCode.REFUSED_INSTANCES,
        f"This node refused {count} of the series, which did not come again ({reason}{more}): it is incomplete.",
    )


def accept(tx: Connection, series_uid: str, now: float) -> int:
    """A person decides that a series is whole without what was refused: it is closed anew, and analysed.

    Returns how many instances it does without; the caller audits who decided. Raises NotFound if none is missing.
    """
    lock_recording(tx)
    missing = _missing(tx, series_uid)
    if not missing:
        raise NotFound("no refused instance of this series is missing")
    tx.execute(update(refused_instances).where(*_still_missing(series_uid)).values(standing="ACCEPTED"))
    _reopen(tx, series_uid, now, to_analyse=False)
    return len(missing)


def _reopen(tx: Connection, series_uid: str, now: float, *, to_analyse: bool) -> None:
    """Reopen a closed series: one to be analysed waits its quiet time, one refused as incomplete is due now."""
    row = _closed(tx, series_uid)
    if row is None or row["refusal_code"] != (None if to_analyse else ReasonCode.REFUSED_INSTANCES.value):
        return
    reopen(tx, row["id"], now, "a refused instance" if to_analyse else "a person")
    due_at = now + row["quiet_s"] if to_analyse else now
    tx.execute(update(series).where(series.c.id == row["id"]).values(set_at=now, due_at=due_at))


def _closed(tx: Connection, series_uid: str) -> RowMapping | None:
    columns = (series.c.id, series.c.quiet_s, series.c.refusal_code)
    closed = (series.c.series_instance_uid == series_uid) & (series.c.state == SeriesState.CLOSED.value)
    return tx.execute(select(*columns).where(closed).with_for_update()).mappings().first()


def _missing(tx: Connection, series_uid: str) -> dict[str, str]:
    """SOP Instance UID and reason of the instances that a series lacks because they were refused."""
    columns = (refused_instances.c.sop_instance_uid, refused_instances.c.reason)
    query = select(*columns).where(*_still_missing(series_uid)).order_by(refused_instances.c.id)
    return {row.sop_instance_uid: row.reason for row in tx.execute(query)}


def _still_missing(series_uid: str) -> list[ColumnElement[bool]]:
    came = exists().where(
        instances.c.sop_instance_uid == refused_instances.c.sop_instance_uid,
        or_(instances.c.gone_reason.is_(None), instances.c.gone_reason == "retention"),
    )
    return [
        refused_instances.c.series_instance_uid == series_uid,
        refused_instances.c.standing == "MISSING",
        ~came,
    ]


def _same(refused: RefusedInstance) -> list[ColumnElement[bool]]:
    return [
        refused_instances.c.series_instance_uid == refused.series_instance_uid,
        refused_instances.c.sop_instance_uid == refused.sop_instance_uid,
        refused_instances.c.reason == refused.reason,
        refused_instances.c.calling_ae == refused.calling_ae,
    ]


def _standing(tx: Connection, refused: RefusedInstance) -> str:
    """A person's decision holds for the instance, whoever sends it again and whatever is wrong with it then."""
    if not refused.wanted:
        return "UNWANTED"
    accepted = exists().where(
        refused_instances.c.series_instance_uid == refused.series_instance_uid,
        refused_instances.c.sop_instance_uid == refused.sop_instance_uid,
        refused_instances.c.standing == "ACCEPTED",
    )
    return "ACCEPTED" if tx.scalar(select(accepted)) else "MISSING"


def _row(refused: RefusedInstance, now: float) -> dict[str, object]:
    return {
        "series_instance_uid": refused.series_instance_uid,
        "sop_instance_uid": refused.sop_instance_uid,
        "study_instance_uid": refused.study_instance_uid,
        "patient_id": refused.patient_id,
        "status": refused.status,
        "reason": refused.reason,
        "calling_ae": refused.calling_ae,
        "address": refused.address,
        "first_at": now,
        "last_at": now,
        "times": 1,
    }


def _note(tx: Connection, refused: RefusedInstance, now: float, times: int) -> None:
    audit.append(
        tx,
        now,
        "instance.refused",
        audit.Subject(
            series_uid=refused.series_instance_uid or None,
            study_uid=refused.study_instance_uid or None,
            sop_uid=refused.sop_instance_uid or None,
            patient_id=refused.patient_id or None,
        ),
        peer=audit.Peer(ae_title=refused.calling_ae, address=refused.address),
        outcome="REFUSED",
        detail={"status": refused.status, "reason": refused.reason, "times": times},
    )
