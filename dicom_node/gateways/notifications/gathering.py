"""What happened since the last look, as messages: by rule, each event once, not too many.

Results come from the audit trail, in its order; problems are looked at as they are. One transaction makes the messages
and moves the place in the trail.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from config.gateways.notifications import NotificationRule
from config.settings import Settings
from inference.models.registry import is_demonstration
from storage import audit, notifications, watch_alarms
from storage.database import Database
from storage.errors import StaleLease
from storage.forwarding import next_rows
from storage.notifications import ToldResult
from storage.watch_alarms import Alarm

AT_ONCE = 5000
HOUR_S = 3600.0
MONITORING = {"canary": "canary-failed"}
"""First words of the problems that have kinds of their own."""
Problems = Callable[[], Sequence[str]]
State = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """Something to tell. key: of a problem that lasts; empty for what happens once. patient: only if a rule allows."""

    kind: str
    what: str
    to_do: str
    key: str = ""
    data: Mapping[str, object] | None = None
    patient: Mapping[str, str] | None = None


@dataclass
class Look:
    """What one look found. lasting: by rule, the problems that go on; new: those to be told now."""

    raw: str | None
    state: State
    happened: list[Event]
    lasting: dict[str, list[Event]]
    new: dict[str, list[Event]]

    def changes(self) -> bool:
        """Whether there is something to write."""
        told = self.state["open"]
        going_on = {name: {one.key for one in events} for name, events in self.lasting.items() if events}
        known = {name: set(keys) for name, keys in told.items()}
        some = self.happened or any(self.new.values()) or self.state["held"]
        return self.raw is None or bool(some) or going_on != known


class Gathering:
    """Looks at the trail and at the problems. problems: the words of `/health`."""

    def __init__(self, settings: Settings, database: Database, problems: Problems) -> None:
        self._settings = settings
        self._database = database
        self._problems = problems
        self._seen = 0  # rows up to this one hold nothing to tell; a restart reads them again

    def gather(self, now: float) -> int:
        """Make the messages of what happened since the last look. Returns how many."""
        asks = any(set(rule.on) - {"positive", "not-analysed"} for rule in self._rules)
        words = self._problems() if asks else []
        with self._database.read() as tx:
            look = self._look(tx, words, now)
        if not look.changes() and look.state["row"] - self._kept_row(look) < AT_ONCE:
            self._seen = look.state["row"]
            return 0
        try:
            with self._database.transaction() as tx:
                made = sum(self._tell(tx, rule, look, now) for rule in self._rules)
                notifications.keep_state(tx, look.raw, look.state)
        except StaleLease:
            return 0  # another node of this index tells it
        self._seen = look.state["row"]
        return made

    @property
    def _rules(self) -> tuple[NotificationRule, ...]:
        return self._settings.notifications

    @staticmethod
    def _kept_row(look: Look) -> int:
        return int(json.loads(look.raw)["row"]) if look.raw else 0

    def _look(self, tx: Connection, words: Sequence[str], now: float) -> Look:
        raw = notifications.read_state(tx)
        state: State = json.loads(raw) if raw else {"row": audit.head(tx)[0], "open": {}, "held": {}}
        happened = list(self._results(tx, state))
        lasting = {
            rule.name: [one for one in _problem_events(tx, rule, words, now) if one.kind in rule.on]
            for rule in self._rules
        }
        new = {rule.name: _newly(rule, state, lasting[rule.name], now) for rule in self._rules}
        return Look(raw, state, happened, lasting, new)

    def _results(self, tx: Connection, state: State) -> Iterator[Event]:
        """Results since the last look; moves the place."""
        state["row"] = max(state["row"], self._seen, audit.archived(tx)[0])
        for row in tx.execute(next_rows(state["row"], AT_ONCE)).mappings():
            state["row"] = row["id"]
            if row["event"] == "result.recorded" and row["result_id"] is not None:
                found = notifications.told_result(tx, row["result_id"])
                yield from self._of_result(row["result_id"], found) if found and found.is_live else ()

    def _of_result(self, result_id: int, found: ToldResult) -> Iterator[Event]:
        data = {"result": result_id, "series": found.series_pk, "model": found.model_name}
        to_do = f"dicom-node series show {found.series_pk}"
        named = {"patient_id": found.patient_id, "accession_number": found.accession_number}
        patient = {name: value for name, value in {**named, "study_date": found.study_date}.items() if value}
        if found.outcome != "ANALYSED":
            what = f"Series {found.series_pk} was not analysed: {found.reason_code}."
            yield Event("not-analysed", what, to_do, data={**data, "reason": found.reason_code}, patient=patient)
        elif found.positive and self._may_tell(found):
            what = f"Result {result_id}, of series {found.series_pk}, has a positive finding."
            yield Event("positive", what, to_do, data=data, patient=patient)

    def _may_tell(self, found: ToldResult) -> bool:
        """Not for a demonstration model: nobody is to act on what it says."""
        if self._settings.model.allow_demonstration_model:
            return True
        return not is_demonstration(self._settings.models_dir, found.model_name, found.model_digest)

    def _tell(self, tx: Connection, rule: NotificationRule, look: Look, now: float) -> int:
        """The messages of one rule; what is too much is counted, and told together later."""
        state = look.state
        new = [one for one in look.happened if one.kind in rule.on] + look.new[rule.name]
        # A clock that was ahead must not use up the hour.
        made = [at for at in notifications.made_since(tx, rule.name, now - HOUR_S) if at <= now]
        left = rule.at_most_per_hour - len(made) // len(channels(rule))
        held, told = state["held"].pop(rule.name, {}), 0
        if held and left > 0:
            told, left, held = _make(tx, rule, _summary(held), now), left - 1, {}
        for one in new:
            if left > 0 and not held:
                told, left = told + _make(tx, rule, one, now), left - 1
            else:
                held[one.kind] = held.get(one.kind, 0) + 1
        _remember(state, rule, look, now)
        if held:
            state["held"][rule.name] = held
        return told


def channels(rule: NotificationRule) -> tuple[str, ...]:
    """How a rule tells."""
    return (*(("mail",) if rule.mail_to else ()), *(("webhook",) if rule.webhook else ()))


def _make(tx: Connection, rule: NotificationRule, event: Event, now: float) -> int:
    content: dict[str, object] = {"what": event.what, "to_do": event.to_do, **(event.data or {})}
    if rule.patient_data and event.patient:
        content["patient"] = dict(event.patient)
    for channel in channels(rule):
        notifications.add(tx, rule.name, channel, event.kind, content, now)
    return len(channels(rule))


def _summary(held: Mapping[str, int]) -> Event:
    """One message for those that were too many."""
    kinds = ", ".join(f"{kind}: {number}" for kind, number in sorted(held.items()))
    what = f"And {sum(held.values())} more, which were too many for single messages: {kinds}."
    return Event("summary", what, "dicom-node status", data={"more": dict(held)})


def _problem_events(tx: Connection, rule: NotificationRule, words: Sequence[str], now: float) -> Iterator[Event]:
    for word in words:
        kind = MONITORING.get(word.partition("-")[0], "health")
        yield Event(kind, f"The node's health check says: {word}.", "dicom-node status", word, {"problem": word})
    if "drift-alarm" in rule.on:
        yield from map(_of_alarm, watch_alarms.unanswered(tx))
    if "delivery-stuck" in rule.on:
        for key, what in notifications.stuck(tx, now, rule.stuck_minutes * 60).items():
            data = {"destination": key.partition(":")[0]}
            yield Event("delivery-stuck", what, "dicom-node status", key, data)


def _of_alarm(alarm: Alarm) -> Event:
    """A watch's alarm, until somebody answers it."""
    data = {"alarm": alarm.id, "model": alarm.model, "watch": alarm.watch, "fact": alarm.fact, "scanner": alarm.scanner}
    what, to_do = f"{alarm.model}: {alarm.sentence}", f"dicom-node watch ack {alarm.id} --reason TEXT"
    return Event("drift-alarm", what, to_do, f"drift {alarm.id}", data)


def _newly(rule: NotificationRule, state: State, lasting: Sequence[Event], now: float) -> list[Event]:
    """The problems that were not there at the last look, or were told long ago."""
    told = state["open"].get(rule.name, {})
    return [one for one in lasting if one.key not in told or abs(now - told[one.key]) >= rule.repeat_hours * HOUR_S]


def _remember(state: State, rule: NotificationRule, look: Look, now: float) -> None:
    """Keep which problems go on and when they were told; forget those that are over."""
    told, new = state["open"].pop(rule.name, {}), {one.key for one in look.new[rule.name]}
    still = {one.key: now if one.key in new else told[one.key] for one in look.lasting[rule.name]}
    if still:
        state["open"][rule.name] = still
