"""Models that a person has suspended: until they are resumed, their series are reported as not analysed.

A suspension is of a name, whatever its version. It ends reports; a shadow, and a batch whose results are sent nowhere,
go on.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from storage import audit
from storage.errors import IllegalMove
from storage.models import suspensions


@dataclass(frozen=True)
class Suspension:
    """A suspension that holds. suspended_at: Unix seconds.  reason: in the person's words."""

    model_name: str
    suspended_at: float
    suspended_by: str
    reason: str


def suspend(tx: Connection, model_name: str, by: str, reason: str, now: float) -> None:
    """Suspend a model, with its audit row. Raises IllegalMove if it is suspended already."""
    if of_model(tx, model_name) is not None:
        raise IllegalMove(f"{model_name} is suspended already")
    values = {"model_name": model_name, "suspended_at": now, "suspended_by": by, "reason": reason}
    tx.execute(insert(suspensions).values(values))
    detail = {"name": model_name, "user": by, "why": reason}
    audit.append(tx, now, "model.suspended", outcome="SUSPENDED", detail=detail)


def resume(tx: Connection, model_name: str, by: str, now: float) -> Suspension:
    """End a suspension, with its audit row. Returns it. Raises IllegalMove if there is none."""
    ended = of_model(tx, model_name)
    if ended is None:
        raise IllegalMove(f"{model_name} is not suspended")
    tx.execute(delete(suspensions).where(suspensions.c.model_name == model_name))
    audit.append(tx, now, "model.resumed", outcome="RESUMED", detail={"name": model_name, "user": by})
    return ended


def of_model(tx: Connection, model_name: str) -> Suspension | None:
    """The suspension of a model; None if it may report."""
    row = tx.execute(select(suspensions).where(suspensions.c.model_name == model_name)).mappings().first()
    return None if row is None else Suspension(**row)


def all_of(tx: Connection) -> list[Suspension]:
    """Every suspension that holds: as many as there are models at most."""
    rows = tx.execute(select(suspensions).order_by(suspensions.c.model_name)).mappings()
    return [Suspension(**row) for row in rows]
