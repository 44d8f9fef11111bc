"""What became of a canary: did its results come, are they those that are expected, and are they where they belong?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from config.reasons import ReasonCode
from dicom_node.analysis.recorded import Replay, values_of
from storage import canaries, deliveries, model_outcomes, results, series
from storage.canaries import CanaryState, Expectation, Run
from storage.deliveries import DeliveryState
from storage.errors import NotFound
from storage.job_state import JobState
from storage.results import ResultOutcome
from storage.series_state import SeriesState

ON_THE_WAY = (DeliveryState.PENDING, DeliveryState.SENDING)
LEARNT = "the first canary"


@dataclass(frozen=True)
class Judgement:
    """state: how the canary ends; None while it is on its way. said: why, without patient data.

    learnt: what is expected of later canaries, of models of which nothing was known.
    """

    state: CanaryState | None
    said: str
    learnt: tuple[Expectation, ...] = ()


def judge(tx: Connection, run: Run, now: float) -> Judgement:
    """Where a canary stands that was sent. Once its time is over, being on its way is a failure."""
    found = _stands(tx, run, now)
    if found.state is None and now > run.due_at:
        minutes = (run.due_at - run.asked_at) / 60
        said = f"After {minutes:.0f} minutes it was not through: {found.said}"
        return Judgement(CanaryState.FAILED, said)
    return found


def _stands(tx: Connection, run: Run, now: float) -> Judgement:
    try:
        record = series.get_series(tx, run.series_instance_uid)
    except NotFound:
        return Judgement(None, "its series is not in the index.")
    pk = record.series_pk
    if record.state == SeriesState.OPEN:
        return Judgement(None, "its series is not closed.")
    outcomes = model_outcomes.of_series(tx, [pk])[pk]
    failed = [one for one in outcomes if one.job_state == JobState.FAILED]
    if failed:
        why = failed[0].failure_reason or "unknown"
        return Judgement(CanaryState.FAILED, f"Its analysis by {failed[0].model_name} failed: {why}.")
    if not outcomes:
        return Judgement(CanaryState.FAILED, f"No model analysed it: {record.refusal_code or 'no job'}.")
    if any(one.result_id is None for one in outcomes):
        return Judgement(None, "its analysis is not done.")
    ids = [one.result_id for one in outcomes if one.result_id is not None]
    return _delivered(tx, ids) or _compared(tx, run, ids, now)


def _delivered(tx: Connection, ids: Sequence[int]) -> Judgement | None:
    """What is wrong with its deliveries; None if it is everywhere."""
    rows = [row for result_id in ids for row in deliveries.of_result(tx, result_id)]
    for row in rows:
        if row["state"] == DeliveryState.FAILED:
            said = f"Its report was not taken by {row['destination']}: {row['error'] or 'unknown'}."
            return Judgement(CanaryState.FAILED, said)
    for row in rows:
        if row["state"] in ON_THE_WAY:
            last = f" ({row['error']})" if row["error"] else ""
            return Judgement(None, f"its report is not at {row['destination']}{last}.")
    return None


def _compared(tx: Connection, run: Run, ids: Sequence[int], now: float) -> Judgement:
    """Its results beside what is expected."""
    said: list[str] = []
    wrong: list[str] = []
    learnt: list[Expectation] = []
    for result_id in ids:
        row = results.get_result(tx, result_id)
        name, digest, values = str(row["model_name"]), str(row["model_digest"]), _plain(values_of(row))
        wanted = canaries.expectation(tx, run.source, name, digest)
        if row["reason_code"] == ReasonCode.MODEL_SUSPENDED:
            said.append(f"{name} is suspended, and said nothing.")
        elif wanted is None and row["outcome"] != ResultOutcome.ANALYSED:
            why = f"{name} did not analyse it ({row['reason_code']}): name a folder with a series that it takes"
            return Judgement(CanaryState.FAILED, f"{why}, or accept this by `dicom-node canary expect`.")
        elif wanted is None:
            learnt.append(Expectation(run.source, name, digest, values, now, LEARNT))
            said.append(f"{name}: nothing was known; from now on, this is expected.")
        else:
            differs = _differs(name, Replay(result_id, run.series_instance_uid, dict(wanted.said), values))
            (wrong if differs else said).append(differs or f"{name}: as expected.")
    if wrong:
        return Judgement(CanaryState.DIFFERS, " ".join(wrong))
    return Judgement(CanaryState.PASSED, " ".join(said), tuple(learnt))


def _differs(name: str, found: Replay) -> str:
    """What is not as expected, beyond what another device may change; empty if nothing is."""
    of = [f"{one} is {found.found.get(one)} and not {found.recorded.get(one)}" for one in found.breaches]
    return f"{name}: {', '.join(of)}." if of else ""


def _plain(values: dict[str, object]) -> dict[str, object]:
    """As the index keeps them."""
    kept: dict[str, object] = json.loads(json.dumps(values, default=str))
    return kept


def expect_as_found(tx: Connection, run: Run, by: str, now: float) -> list[str]:
    """Take what was found of a canary for what is expected from now on. Returns the models."""
    names = []
    for result_id in results.all_current_of(tx, run.series_pk or 0):
        row = results.get_result(tx, result_id)
        values = _plain(values_of(row))
        name, digest = str(row["model_name"]), str(row["model_digest"])
        canaries.expect(tx, Expectation(run.source, name, digest, values, now, by))
        names.append(name)
    return names
