"""Forgetting a patient on request: whatever is in the index about them, in steps that a crash may interrupt anywhere.

What is to go is noted first, with the patient, in `forgettings`. Then the rows of each series go in a transaction that
notes the files, the files go, and the audit rows are emptied (see forgotten.py). At the end the note no longer names
anybody. Each step can be done again. What arrives after the request is not touched: it is a new series.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, Connection, Table, delete, insert, literal, select, update

from storage import audit, forgotten_rows, known_of_patient, listings, recording, set_aside, tallies
from storage.known_of_patient import KnownSeries, in_hand, results_of
from storage.models import audit as trail
from storage.models import (
    conflicts,
    deliveries,
    forgettings,
    forgotten_files,
    jobs,
    patients,
    refused_instances,
    result_objects,
    series,
    studies,
)
from storage.models import instances as instance_table
from storage.moves import insert_row


@dataclass(frozen=True)
class About:
    """Who is forgotten. patient_ids: as the index keeps them; empty if only some of their studies are meant.

    studies, series: Instance UIDs, as the index has them; no study that also has series of somebody else, or that stay.
    known_as: the Patient ID, also if only some of their studies are meant.
    """

    patient_ids: tuple[str, ...]
    studies: tuple[str, ...]
    series: tuple[str, ...]
    known_as: tuple[str, ...] = ()

    @property
    def uids(self) -> tuple[str, ...]:
        """All UIDs, as the audit trail has them."""
        return tuple(sorted({uid.partition(audit.IMPORTED)[0] for uid in (*self.studies, *self.series)}))

    @classmethod
    def read(cls, text: str) -> "About":
        """From the JSON of a note."""
        return cls(**{name: tuple(values) for name, values in json.loads(text).items()})


@dataclass(frozen=True)
class Forgetting:
    """One request. Times are Unix seconds. See `ForgettingRow`."""

    id: int
    asked_at: float
    asked_by: str
    reason: str
    about: str
    upto: int | None
    series: int
    files: int
    audit_rows: int


def about(tx: Connection, patient_id: str, found: Sequence[KnownSeries], *, whole: bool) -> About:
    """What leads to a patient. whole: everything of the patient is meant, and not only these series."""
    study_uids, uids = {one.study_instance_uid for one in found}, {one.series_instance_uid for one in found}
    if whole:
        named = select(studies.c.study_instance_uid).select_from(studies.join(patients))
        study_uids |= set(tx.scalars(named.where(patients.c.patient_id == patient_id)))
        refused = (refused_instances.c.study_instance_uid, refused_instances.c.series_instance_uid)
        for study_uid, uid in tx.execute(select(*refused).where(refused_instances.c.patient_id == patient_id)).all():
            study_uids |= {study_uid} - {""}
            uids |= {uid} - {""}
    staying = ~series.c.id.in_([one.series_pk for one in found])
    of_index = select(studies.c.study_instance_uid, series.c.series_instance_uid).select_from(series.join(studies))
    named_here = studies.c.study_instance_uid.in_(study_uids) | series.c.series_instance_uid.in_(uids)
    for study_uid, uid in tx.execute(of_index.where(staying, named_here)).all():
        study_uids.discard(study_uid)
        uids.discard(uid)
    ids = (patient_id,)
    return About(ids if whole else (), tuple(sorted(study_uids)), tuple(sorted(uids)), ids)


def is_named(tx: Connection, patient_id: str) -> bool:
    """Whether anything in the index names a patient, also what has no series."""
    asked = (
        select(patients.c.id).where(patients.c.patient_id == patient_id),
        select(refused_instances.c.id).where(refused_instances.c.patient_id == patient_id),
        select(trail.c.id).where(trail.c.patient_id == patient_id),
        select(conflicts.c.id).where(set_aside.of_patient(patient_id)),
    )
    return any(tx.scalar(one.limit(1)) is not None for one in asked)


def left_of(tx: Connection, who: About, now: float) -> list[str]:
    """What the index still has of a patient, in words. Afterwards: what came in meanwhile, or what nobody can read."""
    beside = conflicts.c.patient_key.is_(None) & conflicts.c.series_instance_uid.in_(who.series)
    unknown = tx.scalars(select(conflicts.c.id).where(beside).order_by(conflicts.c.id)).all()
    left = [f"the instance set aside as {number}, of which nobody knows whose it is" for number in unknown]
    return left + [what for patient_id in who.patient_ids for what in _left_of(tx, patient_id, now)]


def _left_of(tx: Connection, patient_id: str, now: float) -> Iterator[str]:
    found = known_of_patient.known_series(tx, patient_id, now)
    yield from (f"series {one.series_pk}" for one in found)
    aside = select(conflicts.c.id).where(set_aside.of_patient(patient_id)).order_by(conflicts.c.id)
    yield from (f"the instance set aside as {number}" for number in tx.scalars(aside))
    refused = select(refused_instances.c.id).where(refused_instances.c.patient_id == patient_id)
    yield from (f"the refused instance {number}" for number in tx.scalars(refused))
    filed = select(patients.c.id).where(patients.c.patient_id == patient_id)
    if not found and (pk := tx.scalar(filed.limit(1))) is not None:
        yield f"patient {pk}"


def begin(tx: Connection, who: About, by: str, reason: str, now: float) -> int:
    """Note a request. Returns its number. The audit row does not name the patient."""
    values = {"asked_at": now, "asked_by": by, "reason": reason, "about": json.dumps(asdict(who))}
    number = insert_row(tx, forgettings, {**values, "series": 0, "files": 0, "audit_rows": 0})
    detail = {"number": number, "user": by, "reason": reason, "series": len(who.series)}
    audit.append(tx, now, "patient.forgetting", outcome="BEGUN", detail=detail)
    return number


def unfinished(tx: Connection) -> list[Forgetting]:
    """The requests that were not carried out to the end."""
    return _requests(tx, forgettings.c.ended_at.is_(None))


def get(tx: Connection, number: int) -> Forgetting:
    """One request, also one that is done."""
    return _requests(tx, forgettings.c.id == number)[0]


def _requests(tx: Connection, which: ColumnElement[bool]) -> list[Forgetting]:
    columns = [forgettings.c[name] for name in Forgetting.__dataclass_fields__]
    return [
        Forgetting(**row) for row in tx.execute(select(*columns).where(which).order_by(forgettings.c.id)).mappings()
    ]


def overwrite_what_is_deleted(tx: Connection) -> None:
    """SQLite: from now on this connection leaves nothing of what it deletes in the file's pages."""
    if tx.dialect.name == "sqlite":
        tx.exec_driver_sql("PRAGMA secure_delete = ON")


def remaining_series(tx: Connection, one: Forgetting) -> list[int]:
    """The series that are still to be deleted, those of the request and none that came later."""
    asked = select(series.c.id).where(series.c.series_instance_uid.in_(About.read(one.about).series))
    return list(tx.scalars(asked.where(series.c.first_instance_at <= one.asked_at).order_by(series.c.id)))


def remove_series(tx: Connection, one: Forgetting, series_pk: int, now: float) -> bool:
    """Delete everything that the index has of a series, and note its files.

    Returns False if a process has it in hand: what that one is about to write would stay.
    """
    overwrite_what_is_deleted(tx)
    recording.lock_recording(tx)  # a slice that arrives now is recorded after this, as of a new series
    uid = tx.scalar(select(series.c.series_instance_uid).where(series.c.id == series_pk).with_for_update())
    if uid is None:
        return True
    # Locked, so that nobody claims them from now on.
    tx.execute(select(jobs.c.id).where(jobs.c.series_pk == series_pk).with_for_update())
    tx.execute(select(deliveries.c.id).where(deliveries.c.result_id.in_(results_of(series_pk))).with_for_update())
    if any(in_hand(tx, series_pk, now)):
        return False
    _note_files(tx, one.id, instance_table, instance_table.c.series_pk == series_pk)
    _note_files(tx, one.id, result_objects, result_objects.c.result_id.in_(results_of(series_pk)))
    _note_files(tx, one.id, conflicts, forgotten_rows.set_aside_of(series_pk, uid))
    listings.remove(tx, series_pk)
    forgotten_rows.delete_of_series(tx, series_pk, uid)
    tx.execute(update(forgettings).where(forgettings.c.id == one.id).values(series=forgettings.c.series + 1))
    return True


def remove_the_rest(tx: Connection, one: Forgetting, known_as: Callable[[str], str], now: float) -> int:
    """Delete what the index has of a patient besides series. Returns the number of the last audit row about it.

    known_as: gives what the index has in place of a Patient ID.
    """
    overwrite_what_is_deleted(tx)
    recording.lock_recording(tx)
    who = About.read(one.about)
    for aside in map(set_aside.of_patient, who.patient_ids):
        _note_files(tx, one.id, conflicts, aside)
        tallies.uncount(tx, conflicts, aside)
        tx.execute(delete(conflicts).where(aside))
    forgotten_rows.delete_by_uid(tx, who.uids, who.patient_ids)
    forgotten_rows.delete_empty_studies(tx, who.studies, who.patient_ids, now)
    forgotten_rows.forget_queries(tx, (*who.uids, *who.patient_ids), known_as)
    upto = audit.head(tx)[0]
    tx.execute(update(forgettings).where(forgettings.c.id == one.id).values(upto=upto))
    return upto


def _note_files(tx: Connection, number: int, table: Table, which: ColumnElement[bool]) -> None:
    paths = select(table.c.path, literal(number)).where(which)
    tx.execute(insert(forgotten_files).from_select(["path", "forgetting_id"], paths))


def files_to_delete(tx: Connection, number: int, limit: int) -> list[str]:
    """Some of the files that no row names any longer."""
    noted = select(forgotten_files.c.path).where(forgotten_files.c.forgetting_id == number)
    return list(tx.scalars(noted.order_by(forgotten_files.c.path).limit(limit)))


def files_are_deleted(tx: Connection, number: int, paths: Collection[str]) -> None:
    """These files are gone."""
    tx.execute(delete(forgotten_files).where(forgotten_files.c.path.in_(paths)))
    count_files(tx, number, len(paths))


def count_files(tx: Connection, number: int, files: int) -> None:
    """Add to the number of deleted files."""
    tx.execute(update(forgettings).where(forgettings.c.id == number).values(files=forgettings.c.files + files))


def end(tx: Connection, number: int, now: float, detail: Mapping[str, object]) -> None:
    """All is done: the note no longer names the patient."""
    overwrite_what_is_deleted(tx)
    mine = forgettings.c.id == number
    tx.execute(update(forgettings).where(mine).values(about="", ended_at=now))
    row = tx.execute(select(forgettings).where(mine)).one()
    counts = {name: getattr(row, name) for name in ("series", "files", "audit_rows")}
    whole = {"number": number, **counts, **detail}
    audit.append(tx, now, "patient.forgotten", outcome="FORGOTTEN", detail=whole)
