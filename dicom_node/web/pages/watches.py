"""The watches of a model on the page Models: how each stands, what it measured day by day, and the alarms."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from dicom_node.web.charts import Line, line
from storage import watch_alarms, watch_state
from storage.errors import AlteredReference
from storage.watch_alarms import Alarm
from storage.watch_state import Assessed, Frozen

DAYS = 90
LONGEST_REASON = 400
"""Characters of why an alarm may stand."""
TONES = {"alarm": "bad", "warn": "warn", "ok": "good", "too_few": ""}
LEVELS = {"alarm": "alarm", "warn": "warning", "ok": "as it was", "too_few": "too few studies"}


@dataclass(frozen=True)
class Watch:
    """How a watch stands. chart: its values of the last 90 days; None if there were none."""

    assessed: Assessed
    chart: Line | None

    @property
    def tone(self) -> str:
        """The style's name for its level."""
        return TONES[self.assessed.level]

    @property
    def level(self) -> str:
        """Its level in words."""
        return LEVELS[self.assessed.level]


@dataclass(frozen=True)
class Watched:
    """A model that is watched. asking: what asks for attention; quiet: the other watches.

    problem: why it cannot be looked at, if so.
    """

    reference: Frozen | None
    looked_at: float | None
    alarms: Sequence[Alarm]
    asking: Sequence[Watch]
    quiet: Sequence[Watch]
    problem: str = ""


def watched(tx: Connection, model_digest: str, now: float) -> Watched:
    """The watches of a model."""
    try:
        reference = watch_state.reference(tx, model_digest)
    except AlteredReference as error:
        return Watched(None, None, (), (), (), str(error))
    at, assessed = watch_state.latest(tx, model_digest)
    course = watch_state.course(tx, model_digest, watch_state.day_of(now, back=DAYS))
    watches = [_watch(one, [value for _, value in course.get(one.key, ())]) for one in assessed]
    asking = [one for one in watches if one.assessed.level in ("alarm", "warn")]
    return Watched(
        reference=reference,
        looked_at=at,
        alarms=[one for one in watch_alarms.standing(tx) if one.model_digest == model_digest],
        asking=sorted(asking, key=lambda one: one.assessed.level != "alarm"),
        quiet=[one for one in watches if one not in asking],
    )


def _watch(one: Assessed, values: Sequence[float]) -> Watch:
    return Watch(one, line(values, one.threshold) if values else None)
