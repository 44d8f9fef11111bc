"""How long a series must be quiet before it may close: which series are due, and restarting that time."""

from collections.abc import Set
from dataclasses import dataclass

from sqlalchemy import Connection, Select, select, update

from storage import audit, clock
from storage.models import patients, series, studies
from storage.moves import in_state
from storage.series_state import Selection, SeriesState


@dataclass(frozen=True)
class DueSeries:
    """An open series to decide about. Times are Unix seconds; quiet_s: as the receiver asked for it."""

    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    modality: str
    description: str
    body_part: str
    calling_ae: str
    canary: bool
    revision: int
    instance_count: int
    first_instance_at: float
    last_instance_at: float
    quiet_s: float
    due_at: float


def _waiting() -> Select[tuple[object, ...]]:
    """Open series as the columns of DueSeries."""
    return (
        select(
            series.c.id.label("series_pk"),
            series.c.series_instance_uid,
            studies.c.study_instance_uid,
            patients.c.patient_id,
            series.c.modality,
            series.c.description,
            series.c.body_part,
            series.c.calling_ae,
            series.c.canary,
            series.c.revision,
            series.c.instance_count,
            series.c.first_instance_at,
            series.c.last_instance_at,
            series.c.quiet_s,
            series.c.due_at,
        )
        .select_from(series.join(studies).join(patients))
        .where(in_state(series, SeriesState.OPEN))
        .order_by(series.c.due_at, series.c.id)
    )


def due_series(tx: Connection, now: float) -> list[DueSeries]:
    """The open series whose deadline has passed, the earliest first. Needs a write transaction.

    If the clock jumped back, the quiet times start again from now, also those of studies without a choice yet.
    """
    clock.start_waits_again(tx, series, (SeriesState.OPEN,), now)
    unchosen = (series.c.selection == Selection.WAITING.value) & clock.set_in_the_future(series, now)
    tx.execute(update(series).where(unchosen).values(due_at=now + series.c.quiet_s, set_at=now))
    rows = tx.execute(_waiting().where(series.c.due_at <= now)).mappings()
    return [DueSeries(**row) for row in rows]


def quiet_series(tx: Connection, now: float, idle_s: float) -> list[DueSeries]:
    """The open series without a new instance for `idle_s` seconds, whatever their deadline: worth asking the PACS."""
    idle = (series.c.last_instance_at <= now - idle_s) | (series.c.last_instance_at > now + clock.TOLERANCE_S)
    return [DueSeries(**row) for row in tx.execute(_waiting().where(idle)).mappings()]


def end_study_wait(tx: Connection, series_pk: int, listed: Set[str], now: float) -> bool:
    """A series' study waits no longer for further series, if it is closed here as far as a PACS lists it; a canary that
    names it is none of them.

    listed: Series Instance UIDs. Returns False if any of them is not here or not closed, or if any other is still open.
    """
    study = select(series.c.study_pk).where(series.c.id == series_pk).scalar_subquery()
    of_study = (series.c.study_pk == study) & series.c.canary.is_(False)
    states = tx.execute(select(series.c.series_instance_uid, series.c.state).where(of_study)).all()
    closed = {row.series_instance_uid for row in states if row.state == SeriesState.CLOSED}
    if not listed or not listed <= closed or len(closed) < len(states):
        return False
    waits = of_study & (series.c.due_at > now)
    tx.execute(update(series).where(waits).values(set_at=now, due_at=now))
    return True


def restart_quiet_times(tx: Connection, now: float) -> int:
    """At start, or after a clock was set: every open series waits its full quiet time again, and so does every study
    whose best series has not been chosen. Returns how many series wait.

    While the node was away its senders could not send, so that time was not quiet.
    """
    is_open, undecided = in_state(series, SeriesState.OPEN), series.c.selection == Selection.WAITING.value
    anew = update(series).values(set_at=now, due_at=now + series.c.quiet_s)
    changed = sum(tx.execute(anew.where(waits)).rowcount for waits in (is_open, undecided & ~is_open))
    if changed:
        audit.append(tx, now, "series.quiet-times-restarted", detail={"series": changed})
    return changed
