"""How many series of each week were analysed and how many were not, by reason, source and scanner; without canaries.

Read from the counts that listings.py keeps: a row for each week and kind, however many series there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, text

from storage.listings import ALL_WEEKS, OF_CANARIES, Standing
from storage.models import listing_kinds, listing_weeks, results

REFUSED = text("results.outcome = 'NOT_ANALYSED' AND NOT results.shadow")  # as the index has it
SETTLED = (Standing.ANALYSED.value, Standing.NOT_ANALYSED.value)


@dataclass(frozen=True)
class WeekCount:
    """week: its Monday, "2026-11-23"; empty if the weeks were counted together.

    reason_code: empty for what was analysed. finding: a `listings.Said`.
    """

    week: str
    source: str
    scanner: str
    model: str
    reason_code: str
    finding: str
    rows: int


def settled(tx: Connection, since: str, but: Sequence[str] = ()) -> list[WeekCount]:
    """What was analysed and what was not, of series received in a week from `since` (a Monday) on.

    but: columns that are of no interest, and empty in what is returned; the fewer are left, the fewer rows there are.
    """
    names = [name for name in ("source", "scanner", "model", "reason_code", "finding") if name not in but]
    columns: list[Any] = [listing_kinds.c[name] for name in names]
    if "week" not in but:
        columns.append(listing_weeks.c.week)
    rows = tx.execute(
        select(*columns, func.sum(listing_weeks.c.rows).label("rows"))
        .select_from(listing_weeks.join(listing_kinds, listing_kinds.c.id == listing_weeks.c.kind))
        .where(listing_weeks.c.week != ALL_WEEKS, listing_weeks.c.week >= since, listing_kinds.c.standing.in_(SETTLED))
        .where(listing_kinds.c.source != OF_CANARIES)
        .group_by(*columns)
        .having(func.sum(listing_weeks.c.rows) > 0)
    ).mappings()
    nothing: dict[str, Any] = dict.fromkeys(but, "")
    return [WeekCount(**nothing, **{**row, "rows": int(row["rows"])}) for row in rows]


def latest_sentences(tx: Connection, codes: Sequence[str]) -> dict[str, str]:
    """For each reason code, what the latest result with it says: one seek each."""
    found = {}
    for code in codes:
        of_code = select(results.c.reason_text).where(REFUSED, results.c.reason_code == code)
        latest = of_code.order_by(results.c.created_at.desc()).limit(1)
        found[code] = tx.scalar(latest) or ""
    return found
