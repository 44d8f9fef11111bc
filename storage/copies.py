"""Instances that came again in other bytes: perhaps the same image by a second route, in another encoding.

The receiver sets them aside silently. They are compared later, so that receiving does not wait. If it is the same
image, it is counted and its second file deleted. Another image under the same UID is a contradiction: a person is told.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, or_, select, update

from storage import audit, tallies
from storage.models import conflicts, instances

SAME, CONTRADICTS = "SAME", "CONTRADICTS"


@dataclass(frozen=True)
class SecondCopy:
    """Two files of one SOP Instance UID. path, sha256: of the instance that is held, and of the one set aside.

    retired: retention has deleted the file of the instance that is held.
    """

    conflict_pk: int
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    calling_ae: str
    address: str
    held_path: str
    held_sha256: str
    path: str
    sha256: str
    retired: bool


def to_compare(tx: Connection, limit: int) -> list[SecondCopy]:
    """Those that have not been judged yet, oldest first; but not while the first file is lost: it may come back."""
    rows = tx.execute(
        select(
            conflicts.c.id.label("conflict_pk"),
            conflicts.c.sop_instance_uid,
            conflicts.c.series_instance_uid,
            conflicts.c.study_instance_uid,
            conflicts.c.calling_ae,
            conflicts.c.address,
            instances.c.path.label("held_path"),
            instances.c.sha256.label("held_sha256"),
            conflicts.c.path,
            conflicts.c.sha256,
            instances.c.gone_at.is_not(None).label("retired"),
        )
        .join_from(conflicts, instances, conflicts.c.sop_instance_uid == instances.c.sop_instance_uid)
        .where(
            conflicts.c.verdict.is_(None), or_(instances.c.gone_at.is_(None), instances.c.gone_reason == "retention")
        )
        .order_by(conflicts.c.id)
        .limit(limit)
    )
    return [SecondCopy(**row) for row in rows.mappings()]


def judge(tx: Connection, copy: SecondCopy, difference: str | None, now: float) -> None:
    """Record what a comparison found. difference: what tells the two apart; None if they hold the same image."""
    verdict = SAME if difference is None else CONTRADICTS
    undecided = (conflicts.c.id == copy.conflict_pk) & conflicts.c.verdict.is_(None)
    if not tx.execute(update(conflicts).where(undecided).values(verdict=verdict)).rowcount:
        return
    tallies.add(tx, "conflicts", tallies.UNDECIDED, -1)
    tallies.add(tx, "conflicts", verdict, 1)
    audit.append(
        tx,
        now,
        "instance.same-image" if difference is None else "instance.conflict",
        audit.Subject(
            series_uid=copy.series_instance_uid, study_uid=copy.study_instance_uid, sop_uid=copy.sop_instance_uid
        ),
        peer=audit.Peer(ae_title=copy.calling_ae, address=copy.address),
        outcome="DUPLICATE" if difference is None else "CONFLICT",
        detail={"sha256": copy.sha256, "held": copy.held_sha256, "difference": difference},
    )
