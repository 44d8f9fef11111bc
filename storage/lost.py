"""An instance whose file is gone or damaged: marked, so that the next one that arrives takes its place, and audited."""

from sqlalchemy import ColumnElement, Connection, select, update

from storage import audit, tallies
from storage.models import instances, series, studies


def mark_lost(tx: Connection, which: ColumnElement[bool], reason: str, now: float) -> int:
    """Mark instances that are held.

    which: a condition on `instances`. reason: "missing" or "corrupt". Returns how many matched.
    """
    held = (
        select(instances, series.c.series_instance_uid, studies.c.study_instance_uid)
        .select_from(instances.join(series).join(studies))
        .where(which, instances.c.gone_at.is_(None))
    )
    rows = tx.execute(held).all()
    for row in rows:
        tx.execute(update(instances).where(instances.c.id == row.id).values(gone_at=now, gone_reason=reason))
        tallies.add(tx, "instances", tallies.HELD, -1, size=-row.size)
        tallies.add(tx, "instances", reason, 1)
        audit.append(
            tx,
            now,
            "instance.lost",
            audit.Subject(
                sop_uid=row.sop_instance_uid, series_uid=row.series_instance_uid, study_uid=row.study_instance_uid
            ),
            outcome=reason.upper(),
            detail={"path": row.path, "sha256": row.sha256, "size": row.size},
        )
    return len(rows)
