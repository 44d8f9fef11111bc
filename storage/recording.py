"""Recording received instances: the transaction whose commit lets the receiver answer success.

Many instances go into one transaction (group commit): the fsync of the index is expensive, the rows are not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, insert, null, select, text, update

from storage import audit, canaries, clock, jobs, listings, tallies
from storage.arrival import Arrival, Outcome
from storage.canaries import Kin
from storage.copies import CONTRADICTS, SAME
from storage.job_state import JobState
from storage.models import conflicts, instances, patients, series, studies
from storage.models import jobs as job_table
from storage.moves import insert_row
from storage.names import name_key
from storage.prepared import Prepared
from storage.reopening import reopen
from storage.series_state import SeriesState

KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
KEY_OBJECTS = "KO"
"""Modality of their series, and of no other."""
A_LATE_INSTANCE = "a late instance"
OTHER_BYTES = "the SOP Instance UID holds other content"
STRANGER = "the series is a canary of this node, which did not make this image"
RECORDING_LOCK = 0x7265636F7264  # "record": the key of PostgreSQL's advisory lock on this module
# For one instance, building the statements costs more than running them.
SELECT_HELD = Prepared(
    select(instances.c.sop_instance_uid, series.c.series_instance_uid, instances.c.sha256, instances.c.gone_reason)
    .select_from(instances.join(series))
    .where(instances.c.sop_instance_uid == bindparam("uid"))
)
SELECT_GROUP = Prepared(
    select(
        series.c.series_instance_uid,
        series.c.id,
        studies.c.study_instance_uid,
        series.c.patient_key,
        series.c.state,
        series.c.set_at,
        series.c.modality,
        series.c.canary,
    )
    .select_from(series.join(studies))
    .where(series.c.series_instance_uid == bindparam("uid"))
    # PostgreSQL: another process that closes it waits for us, or we see it closed. SQLite has one writer anyway.
    .with_for_update(of=series)
)
INSERT_INSTANCES = Prepared(
    insert(instances), [c.name for c in instances.c if c.name not in ("id", "gone_at", "gone_reason")]
)
EXTEND_SERIES = Prepared(
    update(series)
    .where(series.c.id == bindparam("pk"))
    .values(
        instance_count=series.c.instance_count + bindparam("added"),
        last_instance_at=bindparam("since"),
        set_at=bindparam("since"),
        quiet_s=bindparam("quiet_s"),
        due_at=bindparam("due_at"),
        emptied_at=null(),
    )
)
QuietTime = Callable[[str], float] | float


@dataclass
class _Held:
    """What the index holds under a SOP Instance UID."""

    series_uid: str
    sha256: str
    gone: str | None


@dataclass
class _Group:
    """A series as this batch finds it, and what the batch adds."""

    pk: int
    study_uid: str
    patient_key: str
    state: str
    set_at: float
    modality: str
    canary: bool
    latest: Arrival | None = None
    added: int = 0


@dataclass
class _Batch:
    """The index's rows that the arrivals meet, and the rows they add."""

    now: float
    held: dict[str, _Held]
    groups: dict[str, _Group]
    new: list[dict[str, Any]] = field(default_factory=list)


def record_instance(tx: Connection, arrival: Arrival, now: float, quiet_s: QuietTime) -> Outcome:
    """`record_instances` for one."""
    return record_instances(tx, [arrival], now, quiet_s)[0]


def record_instances(tx: Connection, arrivals: Sequence[Arrival], now: float, quiet_s: QuietTime) -> list[Outcome]:
    """Record instances whose files are written; one outcome each, in the same order.

    quiet_s: seconds without a new instance after which a series is closed; or a function of the calling AE title.

    NEW moves the deadline of its open series; a closed series is opened again as a new revision, its unfinished
    jobs and unsent deliveries superseded. DUPLICATE changes nothing. CONFLICT (the UID belongs to another series, or
    the series to another study or patient) is set aside, and so is a SECOND_COPY (the UID holds other bytes), to be
    compared. An instance whose file was lost takes the new file and is NEW. Every one gets its audit row.
    """
    lock_recording(tx)
    batch = _Batch(now, _held(tx, arrivals), _groups(tx, arrivals))
    outcomes = [_record(tx, batch, arrival) for arrival in arrivals]
    if batch.new:
        INSERT_INSTANCES.execute(tx, *batch.new)
        tallies.add(tx, "instances", tallies.HELD, len(batch.new), size=sum(row["size"] for row in batch.new))
    for group in batch.groups.values():
        _extend(tx, group, now, quiet_s)
    return outcomes


def lock_recording(tx: Connection) -> None:
    """PostgreSQL: one transaction at a time records instances. SQLite has one writer at a time anyway."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": RECORDING_LOCK})


def _held(tx: Connection, arrivals: Sequence[Arrival]) -> dict[str, _Held]:
    uids = {arrival.sop_instance_uid for arrival in arrivals}
    rows = [row for uid in uids for row in SELECT_HELD.execute(tx, {"uid": uid})]
    return {row[0]: _Held(row[1], row[2], row[3]) for row in rows}


def _groups(tx: Connection, arrivals: Sequence[Arrival]) -> dict[str, _Group]:
    # In the order in which selection.py locks them.
    uids = sorted({arrival.series_instance_uid for arrival in arrivals})
    rows = [row for uid in uids for row in SELECT_GROUP.execute(tx, {"uid": uid})]
    return {row[0]: _Group(*row[1:]) for row in rows}


def _record(tx: Connection, batch: _Batch, arrival: Arrival) -> Outcome:
    held = batch.held.get(arrival.sop_instance_uid)
    group = batch.groups.get(arrival.series_instance_uid)
    reason = _conflict(held, group, arrival)
    # Of a patient's series it is asked once, when its first image arrives.
    kin = _kin(tx, arrival) if reason is None and held is None and (group is None or group.canary) else Kin.NONE
    if kin is Kin.STRANGER:
        reason = STRANGER
    if reason is not None:
        may_be_same = reason == OTHER_BYTES and held is not None and held.gone is None
        return _set_aside(tx, arrival, batch.now, reason, may_be_same)
    if held is not None and held.gone is None:
        note_arrival(tx, arrival, batch.now, "instance.duplicate", Outcome.DUPLICATE)
        return Outcome.DUPLICATE
    if group is None:
        group = batch.groups[arrival.series_instance_uid] = _open_series(tx, arrival, batch.now, kin is Kin.OWN)
    if held is not None:
        _restore(tx, batch, arrival, held, group)
    else:
        batch.new.append(instance_row(arrival, group.pk, batch.now))
        group.added += 1
        group.latest = arrival
        note_arrival(tx, arrival, batch.now, "instance.received", Outcome.NEW)
    batch.held[arrival.sop_instance_uid] = _Held(arrival.series_instance_uid, arrival.file.sha256, None)
    return Outcome.CANARY if group.canary else Outcome.NEW


def _conflict(held: _Held | None, group: _Group | None, arrival: Arrival) -> str | None:
    """Why this arrival cannot be what it says it is; None if it can be."""
    if held is not None and held.series_uid != arrival.series_instance_uid:
        return "the SOP Instance UID belongs to another series"
    if group is not None and group.study_uid != arrival.study_instance_uid:
        return "the series belongs to another study"
    if group is not None and group.patient_key != arrival.patient_key:
        return "the series belongs to another patient"
    if group is not None and (group.modality == KEY_OBJECTS) is not _is_key_objects(arrival):
        return "a series holds either images or key objects"
    # If an instance's file was lost, nothing better is left; if it was removed on purpose, we know the digest.
    if held is not None and held.gone in (None, "retention") and held.sha256 != arrival.file.sha256:
        return OTHER_BYTES
    return None


def _kin(tx: Connection, arrival: Arrival) -> Kin:
    return canaries.kin_of(tx, arrival.series_instance_uid, arrival.study_instance_uid, arrival.sop_instance_uid)


def _is_key_objects(arrival: Arrival) -> bool:
    return arrival.sop_class_uid == KEY_OBJECT_SELECTION


def instance_row(arrival: Arrival, series_pk: int, now: float) -> dict[str, Any]:
    """What the index records of an instance that has arrived or was imported."""
    return {
        "series_pk": series_pk,
        "sop_instance_uid": arrival.sop_instance_uid,
        "sop_class_uid": arrival.sop_class_uid,
        "transfer_syntax_uid": arrival.transfer_syntax_uid,
        "instance_number": arrival.header.instance_number,
        "image_type": arrival.header.image_type,
        "path": arrival.file.path,
        "sha256": arrival.file.sha256,
        "size": arrival.file.size,
        "calling_ae": arrival.calling_ae,
        "called_ae": arrival.called_ae,
        "address": arrival.address,
        "received_at": now,
    }


def note_arrival(
    tx: Connection, arrival: Arrival, now: float, event: str, outcome: str, detail: dict[str, object] | None = None
) -> None:
    audit.append(
        tx,
        now,
        event,
        audit.Subject(
            series_uid=arrival.series_instance_uid,
            study_uid=arrival.study_instance_uid,
            sop_uid=arrival.sop_instance_uid,
            patient_id=arrival.header.patient_id,
        ),
        peer=audit.Peer(ae_title=arrival.calling_ae, address=arrival.address),
        outcome=str(outcome),
        detail={"sha256": arrival.file.sha256, "size": arrival.file.size, **(detail or {})},
    )


def _set_aside(tx: Connection, arrival: Arrival, now: float, reason: str, may_be_same: bool) -> Outcome:
    """Set aside what contradicts the index, or may do so. The same bytes a second time are only counted."""
    same = (
        (conflicts.c.sop_instance_uid == arrival.sop_instance_uid)
        & (conflicts.c.series_instance_uid == arrival.series_instance_uid)
        & (conflicts.c.sha256 == arrival.file.sha256)
    )
    seen = tx.execute(select(conflicts.c.verdict).where(same)).first()
    verdict = seen.verdict if seen else None if may_be_same else CONTRADICTS
    if seen:
        tx.execute(update(conflicts).where(same).values(times_seen=conflicts.c.times_seen + 1))
    else:
        row = instance_row(arrival, 0, now)
        for name in ("series_pk", "sop_class_uid", "transfer_syntax_uid", "instance_number", "image_type"):
            del row[name]
        row["series_instance_uid"] = arrival.series_instance_uid
        row["study_instance_uid"] = arrival.study_instance_uid
        row["patient_key"] = arrival.patient_key
        tx.execute(insert(conflicts).values(**row, reason=reason, times_seen=1, verdict=verdict))
        tallies.add(tx, "conflicts", verdict or tallies.UNDECIDED, 1)
    outcome, event = _KNOWN_AS[verdict]
    note_arrival(tx, arrival, now, event, outcome, {"reason": reason} if verdict == CONTRADICTS else None)
    return outcome


# The outcome of an arrival that was set aside, by the verdict on it.
_KNOWN_AS: Mapping[str | None, tuple[Outcome, str]] = {
    None: (Outcome.SECOND_COPY, "instance.second-copy"),
    SAME: (Outcome.DUPLICATE, "instance.duplicate"),
    CONTRADICTS: (Outcome.CONFLICT, "instance.conflict"),
}


def _restore(tx: Connection, batch: _Batch, arrival: Arrival, held: _Held, group: _Group) -> None:
    """Give an instance whose file is gone the file that just came."""
    tx.execute(
        update(instances)
        .where(instances.c.sop_instance_uid == arrival.sop_instance_uid)
        .values(**instance_row(arrival, group.pk, batch.now), gone_at=None, gone_reason=None)
    )
    tx.execute(update(series).where(series.c.id == group.pk).values(emptied_at=None))
    tallies.add(tx, "instances", held.gone, -1)
    tallies.add(tx, "instances", tallies.HELD, 1, size=arrival.file.size)
    note_arrival(tx, arrival, batch.now, "instance.restored", Outcome.NEW, {"was": held.gone})
    if group.state == SeriesState.OPEN or held.sha256 != arrival.file.sha256:
        group.latest = arrival
    else:
        _retry_failed(tx, group.pk, batch.now)


def _retry_failed(tx: Connection, series_pk: int, now: float) -> None:
    """The input of a closed series is whole again and unchanged: what failed without it may go on."""
    failed = select(job_table.c.id).where(
        job_table.c.series_pk == series_pk,
        job_table.c.state == JobState.FAILED.value,
        job_table.c.batch_id.is_(None),
    )
    for job_id in tx.scalars(failed).all():
        jobs.retry(tx, job_id, now, "a lost file of its series came back")


def _open_series(tx: Connection, arrival: Arrival, now: float, canary: bool) -> _Group:
    """The row of a series whose first instance this is, and those of its study and patient if they are new.

    canary: the node made it, and sent it to itself.
    """
    header = arrival.header
    # A note on images must never be taken for one of them, whatever its header says.
    modality = KEY_OBJECTS if _is_key_objects(arrival) else header.modality
    study_pk = _study(tx, arrival, now)
    values = {
        "study_pk": study_pk,
        "series_instance_uid": arrival.series_instance_uid,
        "patient_key": arrival.patient_key,
        "modality": modality,
        "number": header.series_number,
        "description": header.series_description,
        "body_part": header.body_part,
        "manufacturer": header.manufacturer,
        "station_name": header.station_name,
        "calling_ae": arrival.calling_ae,
        "called_ae": arrival.called_ae,
        "state": SeriesState.OPEN.value,
        "revision": 1,
        "instance_count": 0,
        "first_instance_at": now,
        "last_instance_at": now,
        "quiet_s": 0.0,
        "set_at": now,
        "due_at": now,
        "canary": canary,
    }
    pk = insert_row(tx, series, values)
    if canary:
        canaries.note_series(tx, arrival.series_instance_uid, pk)
    listings.touch(tx, pk)
    audit.append(
        tx,
        now,
        "series.open",
        audit.Subject(
            series_uid=arrival.series_instance_uid, study_uid=arrival.study_instance_uid, patient_id=header.patient_id
        ),
        peer=audit.Peer(ae_title=arrival.calling_ae),
        outcome=SeriesState.OPEN.value,
        detail={"revision": 1, "modality": header.modality},
    )
    state = SeriesState.OPEN.value
    return _Group(pk, arrival.study_instance_uid, arrival.patient_key, state, now, modality, canary)


def _study(tx: Connection, arrival: Arrival, now: float) -> int:
    header = arrival.header
    held = tx.scalar(select(studies.c.id).where(studies.c.study_instance_uid == arrival.study_instance_uid))
    if held is not None:
        return int(held)
    values = {
        "patient_pk": _patient(tx, arrival, now),
        "study_instance_uid": arrival.study_instance_uid,
        "study_date": header.study_date,
        "study_time": header.study_time,
        "accession_number": header.accession_number,
        "description": header.study_description,
        "first_seen_at": now,
    }
    return insert_row(tx, studies, values)


def _patient(tx: Connection, arrival: Arrival, now: float) -> int:
    header = arrival.header
    held = tx.scalar(select(patients.c.id).where(patients.c.key == arrival.patient_key))
    if held is not None:
        return int(held)
    values = {
        "key": arrival.patient_key,
        "patient_id": header.patient_id,
        "name": header.patient_name,
        "birth_date": header.birth_date,
        "sex": header.sex,
        "first_seen_at": now,
        "name_key": name_key(header.patient_name),
    }
    return insert_row(tx, patients, values)


def _extend(tx: Connection, group: _Group, now: float, quiet_s: QuietTime) -> None:
    """Move the deadline of a series that received instances; reopen it if it was closed."""
    if group.latest is None:
        return
    if group.state == SeriesState.CLOSED:
        reopen(tx, group.pk, now, A_LATE_INSTANCE)
    wait_s = quiet_s(group.latest.calling_ae) if callable(quiet_s) else quiet_s
    since = clock.wait_from(group.set_at, now)
    values = {
        "pk": group.pk,
        "added": group.added,
        "since": since,
        "quiet_s": wait_s,
        "due_at": since + wait_s,
    }
    EXTEND_SERIES.execute(tx, values)
