"""Whose an instance is that was set aside. It may be another patient's than the series beside which it was.

Since schema 28 that is recorded as it arrives. For what was set aside before, it is found out once: what only held
other bytes than the instance that was there is of the patient of its series; of the rest the file must be read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, select, update

from storage.arrival import patient_key
from storage.models import conflicts, series
from storage.recording import OTHER_BYTES


@dataclass(frozen=True)
class Nameless:
    """An instance of which the index does not know whose it is."""

    number: int
    path: str
    study_instance_uid: str


def of_patient(patient_id: str) -> ColumnElement[bool]:
    """The instances set aside that are a patient's. patient_id: as the index keeps it."""
    return conflicts.c.patient_key == patient_key(patient_id, "")


def infer(tx: Connection) -> None:
    """Note whose they are, where the index tells."""
    whose = select(series.c.patient_key).where(series.c.series_instance_uid == conflicts.c.series_instance_uid)
    known = conflicts.c.patient_key.is_(None) & (conflicts.c.reason == OTHER_BYTES)
    tx.execute(update(conflicts).where(known).values(patient_key=whose.scalar_subquery()))


def nameless(tx: Connection, after: int, limit: int) -> list[Nameless]:
    """The next of those of which it is not known, by number."""
    asked = select(conflicts.c.id, conflicts.c.path, conflicts.c.study_instance_uid)
    some = asked.where(conflicts.c.patient_key.is_(None), conflicts.c.id > after)
    return [Nameless(*row) for row in tx.execute(some.order_by(conflicts.c.id).limit(limit))]


def note(tx: Connection, patient_ids: Mapping[Nameless, str]) -> None:
    """Record whose they are. patient_ids: as the index keeps them; empty if the header has none."""
    for one, patient_id in patient_ids.items():
        key = patient_key(patient_id, one.study_instance_uid)
        mine = (conflicts.c.id == one.number) & conflicts.c.patient_key.is_(None)
        tx.execute(update(conflicts).where(mine).values(patient_key=key))
