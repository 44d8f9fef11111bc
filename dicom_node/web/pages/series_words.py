"""What a series' page says first: what became of it in a sentence, and each result in the words of its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from config.coding import unit_text
from config.reasons import ReasonCode
from dicom_node.web.pages.charts import gauge
from dicom_node.web.pages.words import clock
from inference.models.cards import Card
from inference.numerals import percent
from storage.coded import CodedFinding, CodedMeasurement, Content
from storage.deliveries import DeliveryState
from storage.examinations import RecordedChange
from storage.job_state import JobState
from storage.results import EVIDENCE, ResultOutcome
from storage.series import SeriesRecord
from storage.series_state import Selection, SeriesState
from storage.verdicts import ReadersVerdict, Verdict
from storage.withdrawals import Withdrawal

CAVEAT = (
    "The output says how sure the model is about the whole scan. It is not the probability that the patient has the "
    "disease: other diseases can score as high."
)
DELIVERIES = {
    DeliveryState.PENDING: ("waits to be sent", "info"),
    DeliveryState.SENDING: ("is being sent", "info"),
    DeliveryState.SENT: ("sent", "good"),
    DeliveryState.COMMITTED: ("sent, and the PACS confirms that it keeps it", "good"),
    DeliveryState.FAILED: ("failed", "bad"),
    DeliveryState.SUPERSEDED: ("replaced by a later result", ""),
}
VERDICTS = {Verdict.AGREES: "agrees", Verdict.DISAGREES: "disagrees", Verdict.CANNOT_SAY: "can't say"}


@dataclass(frozen=True)
class Headline:
    """What became of a series. tone: good, warn, bad or info."""

    text: str
    tone: str
    more: str = ""


@dataclass(frozen=True)
class Said:
    """One finding. shown: its certainty, such as "91"; empty if it has none."""

    finding: CodedFinding
    sign: str
    tone: str
    shown: str
    gauge: Markup
    sentence: str


@dataclass(frozen=True)
class ShownResult:
    """One model's result, ready for the page. deliveries: each with its state in words and its tone."""

    result_id: int
    model: str
    outcome: str
    reason_code: str | None
    reason_text: str | None
    created_at: float
    findings: tuple[Said, ...]
    measurements: tuple[tuple[str, str, str], ...]
    checks: tuple[Mapping[str, Any], ...]
    card: Card | None
    device: str
    precision: str
    timings: Mapping[str, float]
    deliveries: tuple[tuple[Mapping[str, Any], str, str], ...]
    verdicts: tuple[tuple[ReadersVerdict, str], ...]
    change: RecordedChange | None = None


def headline(
    record: SeriesRecord, standing: Sequence[Mapping[str, Any]], withdrawal: Withdrawal | None = None
) -> Headline:
    """The first sentence of the page. withdrawal: the rejection that stands against the series, if there is one."""
    if record.state == SeriesState.OPEN:
        return Headline("Waiting for images: the series is not complete yet.", "info")
    if record.job_state == JobState.QUEUED:
        return Headline("Waiting to be analysed.", "info")
    if record.job_state == JobState.RUNNING:
        return Headline("Being analysed now.", "info")
    if record.job_state == JobState.FAILED:
        return Headline("The analysis failed.", "bad", record.failure_reason or "")
    said = [one for row in standing for one in _findings(row)]
    if said:
        return Headline(*_signs(said))
    if record.outcome == ResultOutcome.ANALYSED:
        return Headline("Measured: the model states no finding.", "info")
    code = record.reason_code or record.refusal_code
    if code == ReasonCode.WITHDRAWN and withdrawal is not None:
        return Headline("Withdrawn: images of it were rejected.", "warn", _withdrawn(withdrawal))
    if code:
        known = ReasonCode.__members__.get(code)
        meaning = known.meaning if known else code
        return Headline(f"Not analysed: {meaning}.", "warn", record.reason_text or record.refusal_text or "")
    if record.selection == Selection.WAITING:
        return Headline("Waiting for the other series of the study.", "info")
    return Headline("Kept and not analysed.", "info")


def _withdrawn(said: Withdrawal) -> str:
    return f"{said.sentence} ({clock(said.at)}) What was reported before is taken back wherever it went."


def _findings(row: Mapping[str, Any]) -> tuple[CodedFinding, ...]:
    content = row["content"]
    assert isinstance(content, Content)  # noqa: S101 - as `get_result` says
    return content.findings


def _signs(said: Sequence[CodedFinding]) -> tuple[str, str, str]:
    """The findings in one sentence, the tone of the gravest, and what they are not."""
    parts = [f"{_sign(one)} for {one.concept.meaning}{_certain(one)}" for one in said]
    text = "; ".join([parts[0][:1].upper() + parts[0][1:], *parts[1:]])
    tone = (
        "bad" if any(one.positive for one in said) else "good" if all(one.positive is False for one in said) else "info"
    )
    caveat = CAVEAT if any(one.certainty is not None for one in said) else ""
    return f"{text}.", tone, caveat


def _sign(one: CodedFinding) -> str:
    return one.interpretation.meaning.lower() if one.interpretation else "no statement"


def _certain(one: CodedFinding) -> str:
    if one.certainty is None:
        return ""
    shown = f": {percent(one.certainty, one.threshold)} %"
    if one.threshold is None:
        return shown
    side = "at or above" if one.certainty >= one.threshold else "below"
    return f"{shown}, {side} the threshold of {100 * one.threshold:.10g} %"


def of_result(
    row: Mapping[str, Any],
    card: Card | None,
    sent: Sequence[Mapping[str, Any]],
    given: Sequence[ReadersVerdict],
    change: RecordedChange | None = None,
) -> ShownResult:
    """A result as `get_result` gives it, with the card of its model if that is here."""
    content = row["content"]
    assert isinstance(content, Content)  # noqa: S101 - as `get_result` says
    checks = [one for one in row["checks"] if one.get("code") != EVIDENCE] if isinstance(row["checks"], list) else []
    return ShownResult(
        result_id=row["id"],
        model=f"{row['model_name']} {row['model_version']}",
        outcome=row["outcome"],
        reason_code=row["reason_code"],
        reason_text=row["reason_text"],
        created_at=row["created_at"],
        findings=tuple(_said(one) for one in content.findings),
        measurements=tuple(_measured(one) for one in content.measurements),
        checks=tuple(checks),
        card=card,
        device=row["device"],
        precision=row["precision"],
        timings=row["timings"],
        deliveries=tuple((one, *DELIVERIES.get(one["state"], (one["state"], ""))) for one in sent),
        verdicts=tuple((one, VERDICTS.get(one.verdict, str(one.verdict))) for one in given),
        change=change,
    )


def _said(one: CodedFinding) -> Said:
    tone = "bad" if one.positive else "good" if one.positive is False else "info"
    shown = "" if one.certainty is None else percent(one.certainty, one.threshold)
    bar = Markup("") if one.certainty is None else gauge(one.certainty, one.threshold)
    text = f"{_sign(one)} for {one.concept.meaning}{_certain(one)}."
    return Said(one, _sign(one), tone, shown, bar, text[:1].upper() + text[1:])


def _measured(one: CodedMeasurement) -> tuple[str, str, str]:
    """Name, value and unit, with as many decimals as a person needs."""
    decimals = 0 if abs(one.value) >= 100 else 1 if abs(one.value) >= 10 else 2
    return one.name, f"{one.value:,.{decimals}f}".replace(",", "\N{NARROW NO-BREAK SPACE}"), unit_text(one.unit.value)
