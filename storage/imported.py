"""Series that were imported for a batch, from a folder or a PACS: rows that can never meet what is received.

Their UIDs carry a mark in the index, made of their content. So the same series may be received meanwhile, from another
patient even, and neither disturbs the other; and the same content is never stored twice. Nobody sent them here: no
association is named, they are closed from the first moment, and no live work, list or view takes them up.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, insert, select, update

from config.reasons import Refusal
from storage import audit, tallies
from storage.arrival import Arrival
from storage.jobs import refusal_columns
from storage.models import batch_cases, instances, patients, series, studies
from storage.moves import in_state, insert_row
from storage.recording import instance_row
from storage.retention import remove_images
from storage.series_state import SeriesState

MARK_DIGITS = 16
FOLDER = "IMPORTED"
"""In place of a calling AE title."""


@dataclass(frozen=True)
class ImportedSeries:
    """One series, its files written. files are of the store.

    source: "folder" or "pacs", peer: who gave it. source_sha256: over the files as they were found.
    refusal: why it cannot be analysed, known before any pixel is read.
    """

    arrivals: Sequence[Arrival]
    source: str
    peer: audit.Peer = audit.NOBODY
    source_sha256: str = ""
    refusal: Refusal | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


def content_digest(of: Mapping[str, str]) -> str:
    """SHA-256 hex over the sorted "SOP Instance UID, file SHA-256" lines, as `series.instances_digest`."""
    return hashlib.sha256("".join(sorted(f"{uid} {sha}\n" for uid, sha in of.items())).encode("ascii")).hexdigest()


def mark(uid: str, digest: str) -> str:
    """The UID of something imported, as the index has it."""
    return f"{uid}{audit.IMPORTED}{digest[:MARK_DIGITS]}"


def plain(uid: str) -> str:
    """The UID as DICOM has it."""
    return uid.partition(audit.IMPORTED)[0]


def held_series(tx: Connection, series_uid: str, received: str, imported: str) -> int | None:
    """The number of a closed series in the index that has exactly this content and all its files, or None.

    received, imported: digests of its content, as files that were received, and as imported ones.
    """
    gone = select(instances.c.id).where(instances.c.series_pk == series.c.id, instances.c.gone_at.is_not(None))
    whole = (series.c.state == SeriesState.CLOSED.value, ~gone.exists())
    live = (series.c.series_instance_uid == series_uid, series.c.instances_digest == received)
    found = tx.scalar(select(series.c.id).where(*whole, *live))
    if found is None:
        found = tx.scalar(select(series.c.id).where(*whole, series.c.series_instance_uid == mark(series_uid, imported)))
    return None if found is None else int(found)


def record(tx: Connection, new: ImportedSeries, now: float) -> tuple[int, list[str]]:
    """The rows of an imported series whose files are durable. Returns its number, and files that are not needed.

    If the index has the same content already, its files are taken if those that it had are gone.
    """
    digest = content_digest({one.sop_instance_uid: one.file.sha256 for one in new.arrivals})
    marked = [_marked(one, digest) for one in new.arrivals]
    uid = marked[0].series_instance_uid
    held = tx.execute(select(series.c.id).where(series.c.series_instance_uid == uid).with_for_update()).first()
    if held is None:
        series_pk, spare = _insert(tx, marked, digest, new.refusal, now), []
    else:
        series_pk, spare = held.id, _restore(tx, held.id, marked, now)
    first = new.arrivals[0]
    size = sum(one.file.size for one in marked)
    detail = {"instances": len(marked), "bytes": size, "instances_digest": digest, "source": new.source, **new.detail}
    if new.source_sha256:
        detail["source_sha256"] = new.source_sha256
    about = audit.Subject(series_uid=uid, study_uid=first.study_instance_uid, patient_id=first.header.patient_id)
    audit.append(tx, now, "batch.imported", about, peer=new.peer, outcome="IMPORTED", detail=detail)
    return series_pk, spare


def _marked(one: Arrival, digest: str) -> Arrival:
    return replace(
        one,
        sop_instance_uid=mark(one.sop_instance_uid, digest),
        series_instance_uid=mark(one.series_instance_uid, digest),
        study_instance_uid=mark(one.study_instance_uid, digest),
    )


def _insert(tx: Connection, marked: Sequence[Arrival], digest: str, refusal: Refusal | None, now: float) -> int:
    first = marked[0]
    header = first.header
    patient_values = {
        "key": mark(first.patient_key, digest),
        "patient_id": header.patient_id,
        "name": header.patient_name,
        "birth_date": header.birth_date,
        "sex": header.sex,
        "first_seen_at": now,
    }
    study_values = {
        "patient_pk": insert_row(tx, patients, patient_values),
        "study_instance_uid": first.study_instance_uid,
        "study_date": header.study_date,
        "study_time": header.study_time,
        "accession_number": header.accession_number,
        "description": header.study_description,
        "first_seen_at": now,
    }
    series_values = {
        "study_pk": insert_row(tx, studies, study_values),
        "series_instance_uid": first.series_instance_uid,
        "patient_key": mark(first.patient_key, digest),
        "modality": header.modality,
        "number": header.series_number,
        "description": header.series_description,
        "body_part": header.body_part,
        "manufacturer": header.manufacturer,
        "station_name": header.station_name,
        "calling_ae": first.calling_ae,
        "called_ae": "",
        "state": SeriesState.CLOSED.value,
        "revision": 1,
        "instance_count": len(marked),
        **dict.fromkeys(("first_instance_at", "last_instance_at", "set_at", "due_at"), now),
        "quiet_s": 0.0,
        "instances_digest": content_digest({one.sop_instance_uid: one.file.sha256 for one in marked}),
        "completeness": FOLDER.lower(),
        **refusal_columns(refusal),
        "imported": True,
    }
    series_pk = insert_row(tx, series, series_values)
    tx.execute(insert(instances), [instance_row(one, series_pk, now) for one in marked])
    tallies.add(tx, "instances", tallies.HELD, len(marked), size=sum(one.file.size for one in marked))
    return series_pk


def _restore(tx: Connection, series_pk: int, marked: Sequence[Arrival], now: float) -> list[str]:
    """Give instances whose files are gone the new ones. Returns the files of the others."""
    rows = tx.execute(
        select(instances.c.id, instances.c.sop_instance_uid, instances.c.gone_reason).where(
            instances.c.series_pk == series_pk
        )
    ).all()
    gone = {row.sop_instance_uid: row for row in rows if row.gone_reason is not None}
    for one in marked:
        row = gone.get(one.sop_instance_uid)
        if row is not None:
            values = {"path": one.file.path, "gone_at": None, "gone_reason": None}
            tx.execute(update(instances).where(instances.c.id == row.id).values(values))
            tallies.add(tx, "instances", row.gone_reason, -1)
            tallies.add(tx, "instances", tallies.HELD, 1, size=one.file.size)
    tx.execute(update(series).where(series.c.id == series_pk).values(emptied_at=None))
    return [one.file.path for one in marked if one.sop_instance_uid not in gone]


def release(tx: Connection, series_pk: int, now: float) -> list[str]:
    """Mark the images of an imported series as removed, unless a case still needs them. Returns the paths to delete.

    Series that were received keep theirs.
    """
    imported_ = tx.scalar(select(series.c.imported).where(series.c.id == series_pk).with_for_update())
    needed = select(batch_cases.c.id).where(in_state(batch_cases, "QUEUED"), batch_cases.c.series_pk == series_pk)
    if not imported_ or tx.scalar(needed.limit(1)) is not None:
        return []
    return remove_images(tx, series_pk, now, {"imported": True})
