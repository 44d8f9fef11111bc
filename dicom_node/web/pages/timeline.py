"""The audit trail as sentences: what happened to a series, in order, the images of one transfer as one line."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dicom_node.web.pages.words import plural
from storage.audit import RECEIVED

Row = Mapping[str, Any]
_TOGETHER = (RECEIVED, "instance.duplicate", "instance.refused", "instance.conflict", "web.read", "operator.read")
"""Events that come by the hundred: neighbours of one kind and one origin are told together."""


@dataclass(frozen=True)
class Told:
    """One line of the timeline. at, until: Unix seconds of its first and last row.  kind: good, bad or plain."""

    at: float
    until: float
    sentence: str
    kind: str


def told(rows: Iterable[Row]) -> list[Told]:
    """The rows, oldest first, as sentences."""
    lines = []
    for _, group in groupby(rows, key=_together):
        same = list(group)
        lines.append(Told(same[0]["at"], same[-1]["at"], sentence(same[-1], len(same)), _kind(same[-1])))
    return lines


def _together(row: Row) -> tuple[object, ...]:
    if row["event"] not in _TOGETHER:
        return (row["id"],)
    return row["event"], row["peer_ae"], row["address"], row["detail"].get("user"), row["detail"].get("reason")


def sentence(row: Row, times: int = 1) -> str:
    """What a row says, or several of the same kind."""
    if row["event"] == "job.queued" and row["detail"].get("from"):
        return f"The analysis was queued again: {row['detail'].get('reason') or 'it will be tried once more'}."
    say = _SENTENCES.get(row["event"])
    return say(row, row["detail"], times) if say else _unknown(row)


def _kind(row: Row) -> str:
    event, outcome = row["event"], row["outcome"] or ""
    if event.endswith((".failed", ".lost", ".conflict", ".refused")) or outcome in ("FAILED", "REJECTED"):
        return "bad"
    return "good" if event in ("job.reported", "delivery.sent", "delivery.committed") else "plain"


def _unknown(row: Row) -> str:
    subject, _, what = str(row["event"]).partition(".")
    known = ", ".join(f"{name} {value}" for name, value in row["detail"].items() if isinstance(value, str | int))
    return f"{subject.capitalize()}: {what.replace('-', ' ')}{f' ({known[:160]})' if known else ''}."


def _images(what: str) -> Callable[[Row, Row, int], str]:
    def say(row: Row, detail: Row, times: int) -> str:
        reason = f": {detail['reason']}" if isinstance(detail.get("reason"), str) else ""
        return f"{plural(times, 'image')} {what} {_from(row)}{reason}."

    return say


def _from(row: Row) -> str:
    return f"from {row['peer_ae'] or 'an unnamed sender'}" + (f" at {row['address']}" if row["address"] else "")


def _closed(row: Row, detail: Row, _times: int) -> str:
    count = plural(int(detail.get("instance_count") or 0), "image")
    how = "complete after its quiet time" if detail.get("completeness") == "quiet-time" else "found complete"
    expected = f"; the PACS counts {detail['expected']}" if detail.get("expected") is not None else ""
    refusal = f"; not to be analysed: {detail['refusal']}" if detail.get("refusal") else ""
    return f"The series was {how} with {count}{expected}{refusal}."


def _recorded(row: Row, detail: Row, _times: int) -> str:
    shadow = " (shadow, never sent)" if detail.get("shadow") else ""
    shadow = f" (batch {detail['batch']}, never sent)" if detail.get("batch") else shadow
    reason = f": {detail['reason']}" if detail.get("reason") else ""
    what = "analysed it" if row["outcome"] == "ANALYSED" else f"gave no result{reason}"
    return f"Result {row['result_id']}: {detail.get('model', 'the model')} {what}{shadow}."


def _lane(detail: Row) -> str:
    return f" in batch {detail['batch']}" if detail.get("batch") else " as a shadow" if detail.get("shadow") else ""


def _to(text: str) -> Callable[[Row, Row, int], str]:
    def say(_row: Row, detail: Row, _times: int) -> str:
        error = detail.get("error") or detail.get("reason")
        return text.format(to=detail.get("destination", "a destination")) + (f": {error}." if error else ".")

    return say


def _by(text: str) -> Callable[[Row, Row, int], str]:
    def say(row: Row, detail: Row, times: int) -> str:
        often = f" {times} times" if times > 1 else ""
        where = f", at {row['address']}" if row["address"] else ", at the command line"
        return f"{detail.get('user', 'Somebody')} {text.format(**_Loose(detail))}{often}{where}."

    return say


class _Loose(dict[str, Any]):
    """Values by name; a name that is missing is left empty."""

    def __missing__(self, key: str) -> str:
        return ""


_SENTENCES: dict[str, Callable[[Row, Row, int], str]] = {
    RECEIVED: _images("received"),
    "instance.duplicate": _images("received again, the same bytes,"),
    "instance.refused": _images("refused"),
    "instance.conflict": _images("set aside, because they contradict what is held,"),
    "instance.restored": _images("restored"),
    "instance.lost": lambda _row, _detail, _times: "The file of an image was lost.",
    "series.open": lambda _row, detail, _times: (
        "A late image reopened the series."
        if detail.get("revision", 1) > 1
        else "The series began with its first image."
    ),
    "series.closed": _closed,
    "series.fetch": lambda _row, detail, _times: (
        f"Missing images were fetched from {detail.get('destination', 'the PACS')}."
    ),
    "workitem.input": lambda _row, detail, _times: f"A step of worklist {detail.get('worklist', '?')} asks for it.",
    "workitem.decided": lambda row, detail, _times: (
        f"The step of worklist {detail.get('worklist', '?')} ends {row['outcome']}"
        + (f": {detail['reason_text']}" if detail.get("reason_text") else ".")
    ),
    "series.images-deleted": lambda _row, _detail, _times: "Retention deleted the images, as the site has set it.",
    "study.series-chosen": lambda _row, _detail, _times: "The study's best series was chosen.",
    "job.queued": lambda _row, detail, _times: f"Queued for {detail.get('model', 'the model')}{_lane(detail)}.",
    "job.running": lambda _row, detail, _times: (
        f"The analysis began (attempt {detail.get('attempt', '?')}, {detail.get('worker', 'a worker')})."
    ),
    "job.reported": lambda _row, _detail, _times: "The analysis was done and its report written.",
    "job.failed": lambda _row, detail, _times: f"The analysis failed: {detail.get('reason', 'no reason is known')}.",
    "job.superseded": lambda _row, detail, _times: f"The analysis was given up: {detail.get('reason', 'replaced')}.",
    "result.recorded": _recorded,
    "result.lost": lambda _row, _detail, _times: "The file of a result's object was lost.",
    "result.replayed": lambda row, _detail, _times: f"The result was replayed: {row['outcome']}.",
    "delivery.pending": _to("To be sent to {to}"),
    "delivery.sending": _to("Sending to {to} began"),
    "delivery.sent": _to("{to} took the result"),
    "delivery.committed": _to("{to} confirmed that it keeps the result"),
    "delivery.failed": _to("Sending to {to} failed"),
    "delivery.superseded": _to("Not sent to {to} any further, because a later result replaces it"),
    "delivery.late": _to("A sender that stood still told {to} the result late; what replaces it is told there again"),
    "delivery.hurried": _to("To be sent to {to} at once"),
    "delivery.withheld": _to("Withheld from {to}"),
    "delivery.unconfirmed": _to("{to} never said whether it keeps the result"),
    "delivery.commitment-requested": _to("{to} was asked whether it keeps the result"),
    "delivery.commitment-not-answered": _to("{to} has not answered whether it keeps the result"),
    "verdict.given": lambda row, detail, _times: (
        f"{detail.get('reader', 'A reader')} gave a verdict: {str(row['outcome'] or '').lower().replace('_', ' ')}."
    ),
    "web.read": _by("looked at the series"),
    "operator.read": _by("looked at the series"),
    "web.download": _by("downloaded an object ({object})"),
    "web.retry": _by("had it tried again"),
    "web.resend": _by("had the result sent again"),
    "web.reanalyse": _by("had the series analysed again with {model}"),
    "operator.retry": _by("had it tried again"),
    "operator.resend": _by("had the result sent again"),
    "operator.reanalyse": _by("had the series analysed again with {model}"),
    "operator.accept": _by("decided that the series is whole"),
}
