"""Who rejected the images of a withdrawn series, when and why, for a person to read."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from storage import audit
from storage.models import instances, rejections, series

DAYS = 7
"""For so long a withdrawal is among the latest."""


@dataclass(frozen=True)
class Withdrawal:
    """The first rejection that stands against a series. at: Unix seconds. why: without patient data.

    who: AE title that sent the note; empty if the PACS said so when it was asked.
    """

    series_pk: int
    who: str
    at: float
    why: str

    @property
    def sentence(self) -> str:
        """Who and why, without the time."""
        return f"Rejected by {self.who or 'the PACS, when it was asked'}: {self.why}."


def of_series(tx: Connection, series_pks: Iterable[int]) -> dict[int, Withdrawal]:
    """The withdrawals of those of the series that have one; a few hundred series at most."""
    # One step after the other, because PostgreSQL may begin a join of them with all rejections.
    uid = series.c.series_instance_uid
    pks = {row[0]: row[1] for row in tx.execute(select(uid, series.c.id).where(series.c.id.in_(set(series_pks))))}
    of = rejections.c.series_instance_uid
    standing = select(func.min(rejections.c.id)).where(of.in_(pks), rejections.c.standing == "STANDS").group_by(of)
    first = list(tx.scalars(standing))
    rows = tx.execute(
        select(of, func.coalesce(instances.c.calling_ae, ""), rejections.c.noted_at, rejections.c.why)
        .outerjoin_from(rejections, instances, instances.c.sop_instance_uid == rejections.c.note_uid)
        .where(rejections.c.id.in_(first))
    )
    return {pks[row[0]]: Withdrawal(pks[row[0]], *row[1:]) for row in rows}


def latest(tx: Connection, now: float, limit: int = 5) -> list[Withdrawal]:
    """The latest withdrawals of the last days that still stand, the latest first."""
    rows = audit.search(tx, event="series.withdrawn", since=now - DAYS * 86400.0, limit=limit)
    uids = list(dict.fromkeys(row["series_uid"] for row in reversed(rows)))
    known = tx.execute(select(series.c.series_instance_uid, series.c.id).where(series.c.series_instance_uid.in_(uids)))
    pks = {row[0]: row[1] for row in known}
    found = of_series(tx, pks.values())
    return [found[pks[uid]] for uid in uids if pks.get(uid) in found]
