"""How long results take: a row for each reported result, and a summary of each day in the transaction of its last row.

A day's percentiles are exact (nearest rank), and the index that finds them is read for that day only. So a question
about ten years reads one row a day, and neither a worker nor a sender waits for more than the results of one day.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Connection, insert, select, text, update

from storage.models import results, turnaround_days, turnarounds

# The row is locked from here to the end of the transaction: the percentiles of two workers' results are right.
COUNT = (
    "INSERT INTO turnaround_days (day_utc, results, delivered) VALUES (:day, :results, :delivered) "
    "ON CONFLICT (day_utc) DO UPDATE SET results = turnaround_days.results + excluded.results, "
    "delivered = turnaround_days.delivered + excluded.delivered RETURNING results, delivered"
)


def add_result(tx: Connection, result_id: int, last_instance_at: float, now: float) -> None:
    """A result was made. last_instance_at: of its series, Unix seconds."""
    day = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")
    values = {"result_id": result_id, "day_utc": day, "to_result_s": now - last_instance_at}
    tx.execute(insert(turnarounds).values(values))
    counted = tx.execute(text(COUNT), {"day": day, "results": 1, "delivered": 0}).one()
    _summarise(tx, day, turnarounds.c.to_result_s, counted.results)


def add_delivery(tx: Connection, result_id: int, now: float) -> None:
    """A destination has the result. Only the first one counts."""
    since = select(results.c.created_at).where(results.c.id == result_id).scalar_subquery()
    first = (turnarounds.c.result_id == result_id) & turnarounds.c.to_delivery_s.is_(None)
    changed = update(turnarounds).where(first).values(to_delivery_s=turnarounds.c.to_result_s + (now - since))
    for day in tx.scalars(changed.returning(turnarounds.c.day_utc)).all():
        counted = tx.execute(text(COUNT), {"day": day, "results": 0, "delivered": 1}).one()
        _summarise(tx, day, turnarounds.c.to_delivery_s, counted.delivered)


def _summarise(tx: Connection, day: str, spans: Column[float], count: int) -> None:
    values = {f"{spans.name[:-2]}_p{percent}_s": _percentile(tx, day, spans, count, percent) for percent in (50, 95)}
    tx.execute(update(turnaround_days).where(turnaround_days.c.day_utc == day).values(values))


def _percentile(tx: Connection, day: str, spans: Column[float], count: int, percent: int) -> float:
    """The nearest rank: the smallest span that so many percent do not exceed. Read from the nearer end."""
    rank = -(-count * percent // 100)
    of_day = select(spans).where(turnarounds.c.day_utc == day, spans.is_not(None))
    if rank > count - rank:
        found = of_day.order_by(spans.desc()).offset(count - rank)
    else:
        found = of_day.order_by(spans).offset(rank - 1)
    return float(tx.execute(found.limit(1)).scalar_one())


def of_days(tx: Connection, days: Sequence[str]) -> list[dict[str, Any]]:
    """The summaries of these days of UTC, "2026-11-23", the latest first; days without a result have none."""
    found = (
        select(turnaround_days).where(turnaround_days.c.day_utc.in_(days)).order_by(turnaround_days.c.day_utc.desc())
    )
    return [dict(row) for row in tx.execute(found).mappings()]
