"""What became of a series, in words: one line for a list, and all lines about one."""

from collections.abc import Iterator
from typing import Any

from config.coding import unit_text
from config.reasons import ReasonCode
from dicom_node.cli.common import local_text, plural, zone
from dicom_node.completion.rule import PACS_LIST
from inference.numerals import percent
from storage import series as store
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.results import ResultOutcome
from storage.series_state import Selection, SeriesState

UNDER_WAY = {
    JobState.QUEUED: "waiting for analysis",
    JobState.RUNNING: "being analysed",
    JobState.FAILED: "analysis FAILED",
}


def answer(record: dict[str, Any]) -> str:
    """What became of a series, in a few words."""
    return "; ".join(f"{model}: {said}" if model else said for model, said in answers(record))


def answers(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What became of a series, in a few words, by model; without a model's name unless several report on it."""
    models = record["models"]
    if record["state"] != SeriesState.OPEN and len(models) > 1:
        return [(one["model_name"], _answer_of(one)) for one in models]
    return [("", _only_answer(record))]


def _only_answer(record: dict[str, Any]) -> str:
    if record["state"] == SeriesState.OPEN:
        return "waiting for images"
    if record["job_state"] in UNDER_WAY or record["outcome"]:
        return _answer_of(record)
    if record["refusal_code"]:
        return _withheld(record["refusal_code"])
    return "waiting for its study" if record["selection"] == Selection.WAITING else "not analysed"


def _answer_of(record: dict[str, Any]) -> str:
    """Of one job and its result."""
    if record["job_state"] in UNDER_WAY:
        return UNDER_WAY[record["job_state"]]
    if record["probability"] is not None:
        return _sign(record)
    return "measured" if record["outcome"] == ResultOutcome.ANALYSED else _withheld(record["reason_code"])


def _withheld(code: str) -> str:
    return "withdrawn" if code == ReasonCode.WITHDRAWN else f"not analysed: {code}"


def lines_about(record: dict[str, Any]) -> Iterator[str]:
    """All lines about one series. record: as `series show --json` prints it."""
    yield f"Series {record['series_pk']}: {answer(record)}"
    yield from (f"  {name:13} {value}" for name, value in _facts(record))
    if len(record["models"]) > 1:
        yield from _study(record)
        yield from _by_model(record)
    else:
        yield from (line for found in record["results"] for line in (*_measurements(found), *_change(found)))
        yield from _study(record)
        yield from _deliveries(record)
        yield from _objects(record)


def _by_model(record: dict[str, Any]) -> Iterator[str]:
    """What each of several models says, why not, and where its result went."""
    found = {one["result_id"]: one for one in record["results"]}
    for model in record["models"]:
        yield f"{model['model_name']} {model['model_version']}: {_answer_of(model)}"
        if model["job_state"] == JobState.FAILED:
            yield f"  because {model['failure_reason']}; try again: dicom-node retry --job {model['job_id']}"
        if model["result_id"] is not None:
            result = found[model["result_id"]]
            yield f"  result {model['result_id']}, of job {model['job_id']}"
            if model["reason_text"]:
                yield f"  because {model['reason_text']}"
            yield from _findings(result)
            yield from _measurements(result)
            yield from (f"  {line}" for line in _change(result))
            yield from (f"  {line}" for line in (*_deliveries(result), *_objects(result)))


def _findings(result: dict[str, Any]) -> Iterator[str]:
    for one in result["findings"]:
        certainty = "" if one["certainty"] is None else f", {100 * one['certainty']:.4g} %"
        yield f"  {one['concept'][2]}: {one['interpretation'][2]}{certainty}"


def _measurements(result: dict[str, Any]) -> Iterator[str]:
    for one in result["measurements"]:
        yield f"  {one['name']}: {one['value']:.6g} {unit_text(one['unit'])}".rstrip()


def _change(result: dict[str, Any]) -> Iterator[str]:
    """How it differs from an earlier result of the same patient, as its report says it."""
    change = result["change"]
    if change is not None:
        replaced = ", which has been replaced since" if change["earlier_was_replaced"] else ""
        yield f"Compared with result {change['earlier_result_id']}{replaced}:"
        yield from (f"  {sentence}" for sentence in change["said"])


def _study(record: dict[str, Any]) -> Iterator[str]:
    """The other results of the study: a positive and a negative are never shown without each other."""
    others = record["study_results"]
    if others:
        differ = "THEY DIFFER: the" if record["study_differs"] else "The"
        yield f"{differ} study was also reported on, to be read together:"
    by_several = len({one["model"] for one in others}) > 1
    for one in others:
        told = (one["series_number"], one["description"], f"by {one['model']}" if by_several else "")
        what = ", ".join(part for part in told if part)
        yield f"  series {one['series_pk']}: {_sign(one)}{f' ({what})' if what else ''}"


def _sign(record: dict[str, Any]) -> str:
    sign = "positive" if record["positive"] else "negative"
    return f"{sign}, {percent(record['probability'], record['threshold'])} %"


def _facts(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    several = len(record["models"]) > 1
    reason = record["refusal_text"] if several else record["reason_text"] or record["refusal_text"]
    if reason:
        yield "because", reason
    withdrawal = record["withdrawal"]
    if withdrawal is not None:
        yield "withdrawn", f"{_moment(withdrawal['at'])}. {withdrawal['said']} Not analysed: {ReasonCode.WITHDRAWN}"
    if ReasonCode.REFUSED_INSTANCES in (record["reason_code"], record["refusal_code"]):
        yield "or decide", f"that it is whole without them: dicom-node series accept {record['series_pk']}"
    if record["failure_reason"] and not several:
        yield "because", f"{record['failure_reason']}; try again: dicom-node retry --series {record['series_pk']}"
    if record["canary"]:
        yield "canary", "the node made it and sent it to itself; it is no patient, and counts in no statistics"
    yield "patient", " ".join(part for part in (record["patient_id"], record["patient_name"]) if part) or "not named"
    yield "study date", record["study_date"] or "not given"
    described = ", ".join(part for part in (record["modality"], record["body_part"], record["description"]) if part)
    yield "described as", described or "nothing"
    yield "images", f"{plural(record['instance_count'], 'image')} from {record['calling_ae']}{_completeness(record)}"
    yield "first, last", f"{local_text(record['first_instance_at'])}, {_moment(record['last_instance_at'])}"
    if record["closed_at"] is not None:
        yield "complete", f"{_moment(record['closed_at'])}{_revision(record)}"
    else:
        yield "complete", f"decided at {_moment(record['due_at'])}, unless more images come{_revision(record)}"
    if record["result_id"] is not None and not several:
        yield "result", f"{record['result_id']}, of job {record['job_id']}"
    yield "Series UID", record["series_instance_uid"]
    yield "Study UID", record["study_instance_uid"]


def _completeness(record: dict[str, Any]) -> str:
    expected = record["expected_count"]
    if record["completeness"] == PACS_LIST:
        return f"; the PACS counts more, but lists {expected}, also when asked again"
    asked = "" if expected is None else f"; the PACS counts {expected}"
    return asked or ("; complete after a quiet time" if record["completeness"] == store.QUIET_TIME else "")


def _revision(record: dict[str, Any]) -> str:
    return "" if record["revision"] == 1 else f" (revision {record['revision']} of the series)"


def _moment(seconds: float) -> str:
    return f"{local_text(seconds)} {zone(seconds)}"


DELIVERY_WORDS = {
    DeliveryState.PENDING: "waits to be sent",
    DeliveryState.SENDING: "is being sent",
    DeliveryState.SENT: "sent",
    DeliveryState.COMMITTED: "sent, and the PACS confirms that it keeps it",
    DeliveryState.FAILED: "FAILED",
    DeliveryState.SUPERSEDED: "replaced by a later result",
}


def _deliveries(record: dict[str, Any]) -> Iterator[str]:
    if record["result_id"] is not None and not record["deliveries"]:
        yield "The result goes to no destination."
    for found in record["deliveries"]:
        words = DELIVERY_WORDS.get(found["state"], found["state"])
        since = (
            f" at {_moment(found['sent_at'])}" if found["sent_at"] and found["state"] != DeliveryState.PENDING else ""
        )
        yield f"Delivery {found['id']} to {found['destination']}: {words}{since}"
        if found["state"] == DeliveryState.PENDING and found["due_at"]:
            yield f"  next attempt {_moment(found['due_at'])}; now: dicom-node retry --delivery {found['id']}"
        if found["state"] == DeliveryState.FAILED:
            yield f"  try again: dicom-node retry --delivery {found['id']}"
        if found["error"]:
            yield f"  after {plural(found['attempts'], 'attempt')}: {found['error']}"


def _objects(record: dict[str, Any]) -> Iterator[str]:
    if record["objects"]:
        yield "Objects of the result (kind, size, SOP Instance UID):"
    for found in record["objects"]:
        yield f"  {found['kind']:22} {found['size'] / 1024:7.0f} KiB"
        yield f"    {found['sop_instance_uid']}"
