"""What a model in use is compared with, and how each watch stood on each day.

A reference is frozen: it is never changed, only replaced by a person, and its digest shows if somebody altered it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from storage import audit
from storage.errors import AlteredReference
from storage.facts import get_fact, set_fact
from storage.jobs import ModelRef
from storage.models import watch_assessments, watch_references

LOOKED = "watch"
KEPT_DAYS = 400


@dataclass(frozen=True)
class Frozen:
    """A reference in use. content: JSON.  studies: how many analysed ones.  frozen_by: empty if the node did it."""

    id: int
    model_digest: str
    content: str
    digest: str
    studies: int
    frozen_at: float
    frozen_by: str
    reason: str


@dataclass(frozen=True)
class Assessed:
    """How a watch stands. level: "too_few", "ok", "warn" or "alarm".  scanner: empty for all of a model's studies."""

    watch: str
    fact: str
    scanner: str
    level: str
    statistic: str
    value: float | None
    threshold: float | None
    sentence: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is one of."""
        return self.watch, self.fact, self.scanner


def reference(tx: Connection, model_digest: str) -> Frozen | None:
    """The reference of a model; None if there is none yet. Raises AlteredReference."""
    columns = [watch_references.c[field.name] for field in fields(Frozen)]
    current = (watch_references.c.model_digest == model_digest) & watch_references.c.replaced_at.is_(None)
    row = tx.execute(select(*columns).where(current)).mappings().first()
    if row is None:
        return None
    if hashlib.sha256(row["content"].encode()).hexdigest() != row["digest"]:
        raise AlteredReference(
            f"the reference {row['id']} of the model was altered: its SHA-256 is not what it was; freeze another with "
            "`dicom-node watch reference MODEL --renew`"
        )
    return Frozen(**row)


def freeze(
    tx: Connection, model: ModelRef, content: str, studies: int, now: float, by: str = "", reason: str = ""
) -> str:
    """Freeze a reference in place of the one in use, with its audit row. by: a person, with the reason.

    Returns its digest.
    """
    current = (watch_references.c.model_digest == model.digest) & watch_references.c.replaced_at.is_(None)
    tx.execute(update(watch_references).where(current).values(replaced_at=now))
    digest = hashlib.sha256(content.encode()).hexdigest()
    values = {
        "model_digest": model.digest,
        "model_name": model.name,
        "model_version": model.version,
        "content": content,
        "digest": digest,
        "studies": studies,
        "frozen_at": now,
        "frozen_by": by,
        "reason": reason,
    }
    tx.execute(insert(watch_references).values(values))
    detail = {"model": f"{model.name} {model.version}", "digest": digest, "studies": studies}
    whole = {**detail, "user": by, "why": reason} if by else detail
    audit.append(tx, now, "watch.reference-frozen", outcome="FROZEN", detail=whole)
    return digest


def keep(tx: Connection, model_digest: str, assessed: Iterable[Assessed], now: float) -> None:
    """Keep how the watches stand, in place of an earlier look of the day; those of long ago go."""
    of_model, day = watch_assessments.c.model_digest == model_digest, day_of(now)
    tx.execute(delete(watch_assessments).where(of_model, watch_assessments.c.day_utc == day))
    tx.execute(delete(watch_assessments).where(of_model, watch_assessments.c.day_utc < day_of(now, back=KEPT_DAYS)))
    rows = [{"model_digest": model_digest, "day_utc": day, "at": now, **asdict(one)} for one in assessed]
    if rows:
        tx.execute(insert(watch_assessments), rows)


def day_of(now: float, back: int = 0) -> str:
    """The day of UTC of a moment, or so many days before, "2026-11-23"."""
    return (datetime.fromtimestamp(now, UTC) - timedelta(days=back)).strftime("%Y-%m-%d")


def latest(tx: Connection, model_digest: str) -> tuple[float | None, list[Assessed]]:
    """When a model was last looked at, and how its watches stood then."""
    of_model = watch_assessments.c.model_digest == model_digest
    day = select(func.max(watch_assessments.c.day_utc)).where(of_model).scalar_subquery()
    key = [watch_assessments.c[name] for name in ("watch", "fact", "scanner")]
    found = tx.execute(select(watch_assessments).where(of_model, watch_assessments.c.day_utc == day).order_by(*key))
    rows = found.mappings().all()
    return (rows[0]["at"] if rows else None), [_assessed(row) for row in rows]


def course(tx: Connection, model_digest: str, since_day: str) -> dict[tuple[str, str, str], list[tuple[str, float]]]:
    """The values of each watch by day, since a day, as far as there were enough studies: for a chart."""
    names = ("watch", "fact", "scanner", "day_utc", "value")
    of_model = (watch_assessments.c.model_digest == model_digest) & (watch_assessments.c.day_utc >= since_day)
    told = select(*(watch_assessments.c[name] for name in names)).where(
        of_model, watch_assessments.c.level != "too_few"
    )
    found: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
    for watch, fact, scanner, day, value in tx.execute(told.order_by(watch_assessments.c.day_utc)):
        if value is not None:
            found.setdefault((watch, fact, scanner), []).append((day, value))
    return found


def _assessed(row: RowMapping) -> Assessed:
    return Assessed(**{field.name: row[field.name] for field in fields(Assessed)})


def looked_at(tx: Connection) -> float | None:
    """When the models were last looked at; None if they never were."""
    found = get_fact(tx, LOOKED)
    return float(found) if found else None


def note_look(tx: Connection, now: float) -> None:
    """They were looked at now."""
    set_fact(tx, LOOKED, repr(now))
