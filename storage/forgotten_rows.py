"""Which rows of which tables go when a patient is forgotten, and how the counts follow."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, or_, select, update

from storage import audit, tallies
from storage.arrival import patient_key
from storage.forwarding import PLACE
from storage.models import (
    batch_cases,
    batches,
    canary_runs,
    completion_efforts,
    conflicts,
    deliveries,
    examinations,
    findings,
    instances,
    jobs,
    measurements,
    messages,
    notifications,
    patients,
    properties,
    refused_instances,
    rejections,
    result_objects,
    results,
    series,
    studies,
    turnarounds,
    verdicts,
    watch_facts,
    workitem_series,
    workitems,
)
from storage.moves import insert_row

COUNTED = {table.name for table in (series, jobs, results, deliveries, conflicts, instances, workitems)}
FORGOTTEN = "(forgotten)"
IN_QUERY = re.compile(r'[\\/"]+')
"""Separates the values of a key, and the folders of a path."""


def delete_of_series(tx: Connection, series_pk: int, uid: str) -> None:
    """Delete the rows of a series, with all that hangs on them; its listings are gone already.

    uid: its UID as the index has it.
    """
    _delete_cases(tx, (batch_cases.c.series_pk == series_pk) | (batch_cases.c.series_uid == _plain(uid)))
    # What a study with a known result was sent for stays: it is nobody's.
    tx.execute(update(canary_runs).where(canary_runs.c.series_pk == series_pk).values(series_pk=None))
    for table, which in of_series(series_pk, uid):
        if table.name in COUNTED:
            tallies.uncount(tx, table, which)
        tx.execute(delete(table).where(which))


def of_series(series_pk: int, uid: str) -> Iterator[tuple[Table, ColumnElement[bool]]]:
    """Tables and conditions, in the order in which rows of a series may go."""
    of_results = select(results.c.id).where(results.c.series_pk == series_pk)
    yield messages, messages.c.delivery_id.in_(select(deliveries.c.id).where(deliveries.c.result_id.in_(of_results)))
    # A later result says that it was compared with this one.
    yield examinations, examinations.c.earlier_id.in_(of_results)
    of_result = (deliveries, verdicts, examinations, findings, measurements, result_objects, turnarounds, watch_facts)
    for table in of_result:
        yield table, table.c.result_id.in_(of_results)
    for table in (results, jobs, completion_efforts, instances):
        yield table, table.c.series_pk == series_pk
    yield conflicts, set_aside_of(series_pk, uid)
    yield series, series.c.id == series_pk


def set_aside_of(series_pk: int, uid: str) -> ColumnElement[bool]:
    """What was set aside beside a series, and is of the same patient."""
    whose = select(series.c.patient_key).where(series.c.id == series_pk).scalar_subquery()
    return (conflicts.c.series_instance_uid == uid) & (conflicts.c.patient_key == whose)


def _plain(uid: str) -> str:
    return uid.partition(audit.IMPORTED)[0]


def _delete_cases(tx: Connection, which: ColumnElement[bool]) -> None:
    """The cases of batches go, as if they had never been asked for."""
    counted = select(batch_cases.c.batch_id, batch_cases.c.state, func.count()).where(which)
    for batch_id, state, number in tx.execute(counted.group_by(batch_cases.c.batch_id, batch_cases.c.state)).all():
        names = ["cases", *({state.lower()} & {"queued", "done", "without_result"})]
        fewer: dict[str, Any] = {name: batches.c[name] - number for name in names}
        tx.execute(update(batches).where(batches.c.id == batch_id).values(fewer))
    tx.execute(delete(batch_cases).where(which))


def delete_by_uid(tx: Connection, uids: Sequence[str], patient_ids: Sequence[str]) -> None:
    """Delete what names a patient's studies and series, or the patient, without a row of a series.

    uids: as DICOM has them.
    """
    by_uid = refused_instances.c.series_instance_uid.in_(uids) | refused_instances.c.study_instance_uid.in_(uids)
    tx.execute(delete(refused_instances).where(by_uid | refused_instances.c.patient_id.in_(patient_ids)))
    tx.execute(delete(rejections).where(rejections.c.series_instance_uid.in_(uids)))
    _delete_cases(tx, batch_cases.c.series_uid.in_(uids))
    mine = workitem_series.c.series_uid.in_(uids)
    steps = set(tx.scalars(select(workitem_series.c.workitem_id).where(mine)))
    tx.execute(delete(workitem_series).where(mine))
    left = set(tx.scalars(select(workitem_series.c.workitem_id).where(workitem_series.c.workitem_id.in_(steps))))
    gone = workitems.c.id.in_(steps - left) & workitems.c.ended_at.is_not(None)
    tallies.uncount(tx, workitems, gone)
    tx.execute(delete(workitems).where(gone))


def delete_empty_studies(tx: Connection, study_uids: Sequence[str], patient_ids: Sequence[str], now: float) -> None:
    """Delete studies that have no series left, and the patients that have no study left.

    A patient's study that has series of somebody else is filed under that one from now on.
    """
    mine = studies.c.study_instance_uid.in_(study_uids)
    persons = set(tx.scalars(select(studies.c.patient_pk).where(mine)))
    persons |= set(tx.scalars(select(patients.c.id).where(patients.c.patient_id.in_(patient_ids))))
    tx.execute(delete(studies).where(mine, ~studies.c.id.in_(select(series.c.study_pk))))
    _file_under_others(tx, patient_ids, now)
    for pk in persons:
        if tx.scalar(select(studies.c.id).where(studies.c.patient_pk == pk).limit(1)) is None:
            tx.execute(delete(patients).where(patients.c.id == pk))


def _file_under_others(tx: Connection, patient_ids: Sequence[str], now: float) -> None:
    keys = [patient_key(one, "") for one in patient_ids]
    joined = select(studies.c.id, func.min(series.c.patient_key)).select_from(series.join(studies).join(patients))
    filed = patients.c.patient_id.in_(patient_ids), ~series.c.imported, ~series.c.patient_key.in_(keys)
    for study_pk, key in tx.execute(joined.where(*filed).group_by(studies.c.id)).all():
        pk = tx.scalar(select(patients.c.id).where(patients.c.key == key)) or _insert_patient(tx, key, now)
        tx.execute(update(studies).where(studies.c.id == study_pk).values(patient_pk=pk))


def _insert_patient(tx: Connection, key: str, now: float) -> int:
    """A patient of whom the index knows no more than the ID."""
    kind, _, name = key.partition(":")
    blank = dict.fromkeys(("name", "birth_date", "sex", "name_key"), "")
    values = {"key": key, "patient_id": name if kind == "id" else "", "first_seen_at": now, **blank}
    return insert_row(tx, patients, values)


def forget_queries(tx: Connection, names: Collection[str], known_as: Callable[[str], str]) -> None:
    """Take identifiers out of what batches asked for, what notifications say, and what is gathered to be told.

    known_as: gives what the index has in place of a Patient ID. Batches keep what a person typed.
    """
    for row in tx.execute(select(batches.c.id, batches.c.source, batches.c.query, batches.c.cursor)).all():
        query = json.loads(row.query)
        said = [query["where"], row.cursor, *query["keys"].values()]
        words = {word for text in said for word in {text.strip(), *IN_QUERY.split(text)} if word}
        if not {*words, *map(known_as, words)}.isdisjoint(names):
            query = {"where": FORGOTTEN if row.source == "folder" else query["where"], "keys": {FORGOTTEN: FORGOTTEN}}
            values = {"query": json.dumps(query, sort_keys=True), "cursor": FORGOTTEN}
            tx.execute(update(batches).where(batches.c.id == row.id).values(values))
    quoted = {json.dumps(name, ensure_ascii=escaped) for name in names for escaped in (True, False)}
    named = [notifications.c.content.contains(name, autoescape=True) for name in quoted]
    tx.execute(delete(notifications).where(notifications.c.content != "", or_(*named)))
    _forget_gathered(tx, set(names))


def _forget_gathered(tx: Connection, names: set[str]) -> None:
    """Transfers of the patient that were not told yet as audit messages never will be."""
    raw = tx.scalar(select(properties.c.value).where(properties.c.name == PLACE))
    if raw is None:
        return
    place = json.loads(raw)
    left = [one for one in place["gathered"] if not {one["patient_id"], one["study_uid"]} & names]
    if len(left) != len(place["gathered"]):
        value = json.dumps({**place, "gathered": left}, ensure_ascii=False)
        tx.execute(update(properties).where(properties.c.name == PLACE).values(value=value))
