"""Alarms of the watches: raised once, acknowledged by a person with a reason, ended when the watch finds nothing more.

An alarm tells. It changes no result, and holds none up.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, insert, select, update

from storage import audit
from storage.errors import IllegalMove, NotFound
from storage.jobs import ModelRef
from storage.models import watch_alarms
from storage.watch_state import Assessed


@dataclass(frozen=True)
class Alarm:
    """An alarm. sentence: of the watch, when it last raised it.  acknowledged_why: in the person's words."""

    id: int
    model_digest: str
    model_name: str
    model_version: str
    watch: str
    fact: str
    scanner: str
    sentence: str
    value: float | None
    threshold: float | None
    raised_at: float
    seen_at: float
    acknowledged_at: float | None
    acknowledged_by: str | None
    acknowledged_why: str | None
    ended_at: float | None

    @property
    def model(self) -> str:
        """Name and version."""
        return f"{self.model_name} {self.model_version}"

    @property
    def key(self) -> tuple[str, str, str]:
        """Which watch raised it."""
        return self.watch, self.fact, self.scanner


COLUMNS = [watch_alarms.c[field.name] for field in fields(Alarm)]


def standing(tx: Connection) -> list[Alarm]:
    """The alarms that have not ended, the first first: as many as there are watches at most."""
    order = watch_alarms.c.raised_at, watch_alarms.c.id
    return _alarms(tx.execute(select(*COLUMNS).where(watch_alarms.c.ended_at.is_(None)).order_by(*order)))


def unanswered(tx: Connection) -> list[Alarm]:
    """Those of them that nobody has acknowledged."""
    return [one for one in standing(tx) if one.acknowledged_at is None]


def latest(tx: Connection, most: int) -> list[Alarm]:
    """The latest alarms, those that have ended included, the last first."""
    return _alarms(tx.execute(select(*COLUMNS).order_by(watch_alarms.c.id.desc()).limit(most)))


def _alarms(rows: Any) -> list[Alarm]:
    return [Alarm(**row) for row in rows.mappings()]


def settle(tx: Connection, model: ModelRef, assessed: Iterable[Assessed], now: float, *, whole: bool = True) -> None:
    """Raise the alarms that are new, renew those that go on, end those whose watch is content again, or is no more.

    Between "ok" and "alarm", or with too few studies, an alarm stays as it is. A watch of a scanner that is no longer
    seen is no more.
    whole: these are all watches of the model; else those of others stay.
    """
    open_ = {one.key: one for one in standing(tx) if one.model_digest == model.digest}
    for one in assessed:
        held = open_.pop(one.key, None)
        if one.level == "alarm":
            _raise(tx, model, one, now) if held is None else _renew(tx, held, one, now)
        elif one.level == "ok" and held is not None:
            end(tx, held, now, one.sentence)
    for gone in open_.values() if whole else ():
        end(tx, gone, now, _why_gone(gone))


def _why_gone(alarm: Alarm) -> str:
    if alarm.watch == "new value":
        return "it is no longer seen, or is told together with others"
    return f"nothing comes from {alarm.scanner} any more" if alarm.scanner else "what it was about is no longer seen"


def _raise(tx: Connection, model: ModelRef, one: Assessed, now: float) -> None:
    values = {
        "model_digest": model.digest,
        "model_name": model.name,
        "model_version": model.version,
        **{name: getattr(one, name) for name in ("watch", "fact", "scanner", "sentence", "value", "threshold")},
        "raised_at": now,
        "seen_at": now,
    }
    alarm_id = tx.execute(insert(watch_alarms).values(values).returning(watch_alarms.c.id)).scalar_one()
    said = {"value": one.value, "threshold": one.threshold, "sentence": one.sentence}
    detail = _named(alarm_id, f"{model.name} {model.version}", one.key) | said
    audit.append(tx, now, "watch.alarm-raised", outcome="RAISED", detail=detail)


def _renew(tx: Connection, held: Alarm, one: Assessed, now: float) -> None:
    values = {"sentence": one.sentence, "value": one.value, "threshold": one.threshold, "seen_at": now}
    tx.execute(update(watch_alarms).where(watch_alarms.c.id == held.id).values(values))


def end(tx: Connection, alarm: Alarm, now: float, why: str) -> None:
    """An alarm has ended, with its audit row."""
    tx.execute(update(watch_alarms).where(watch_alarms.c.id == alarm.id).values(ended_at=now))
    detail = _named(alarm.id, alarm.model, alarm.key) | {"why": why}
    audit.append(tx, now, "watch.alarm-ended", outcome="ENDED", detail=detail)


def acknowledge(tx: Connection, alarm_id: int, by: str, why: str, now: float) -> Alarm:
    """A person has seen an alarm and answers for it, with the audit row. Returns it as it was.

    Raises NotFound, or IllegalMove if it has ended or somebody has done so already.
    """
    alarm = next(iter(_alarms(tx.execute(select(*COLUMNS).where(watch_alarms.c.id == alarm_id)))), None)
    if alarm is None:
        raise NotFound(f"no alarm {alarm_id}; `dicom-node watch show` lists them")
    if alarm.ended_at is not None:
        raise IllegalMove(f"alarm {alarm_id} has ended already")
    if alarm.acknowledged_at is not None:
        raise IllegalMove(f"alarm {alarm_id} was acknowledged by {alarm.acknowledged_by} already")
    values = {"acknowledged_at": now, "acknowledged_by": by, "acknowledged_why": why}
    tx.execute(update(watch_alarms).where(watch_alarms.c.id == alarm_id).values(values))
    detail = _named(alarm_id, alarm.model, alarm.key) | {"user": by, "why": why}
    audit.append(tx, now, "watch.alarm-acknowledged", outcome="ACKNOWLEDGED", detail=detail)
    return alarm


def _named(alarm_id: int, model: str, key: tuple[str, str, str]) -> dict[str, object]:
    watch, fact, scanner = key
    return {"alarm": alarm_id, "model": model, "watch": watch, "fact": fact, "scanner": scanner}
