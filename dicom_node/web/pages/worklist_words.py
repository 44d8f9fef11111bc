"""What the worklist says: of the whole search in a sentence, and of each line what became of the series."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from config.reasons import ReasonCode
from dicom_node.web.pages.words import count, minute
from inference.numerals import percent
from storage.listed_series import Line
from storage.listings import OF_CANARIES, Said, Standing
from storage.worklist import Order, Page, Search

STANDINGS = {
    Standing.PENDING: "waiting for a result",
    Standing.ANALYSED: "analysed",
    Standing.NOT_ANALYSED: "not analysed",
    Standing.FAILED: "analysis failed",
    Standing.KEPT: "kept, not to be analysed",
}
WAITING = {"RUNNING": "Being analysed", "QUEUED": "Waiting to be analysed"}


@dataclass(frozen=True)
class Outcome:
    """What became of a series. tone: good, warn, bad or info. number: a probability with its unit. more: why."""

    text: str
    tone: str
    number: str = ""
    more: str = ""


def outcome_of(line: Line) -> Outcome:
    """The outcome of one line in words. A canary calls nobody to a patient, whatever is said of it."""
    found = _outcome_of(line)
    if line.source != OF_CANARIES:
        return found
    return replace(
        found, text=f"Canary: {found.text.lower()}", tone="bad" if line.standing == Standing.FAILED else "info"
    )


def _outcome_of(line: Line) -> Outcome:
    if line.standing == Standing.ANALYSED:
        number = "" if line.probability is None else f"{percent(line.probability, line.threshold)} %"
        if line.finding == Said.POSITIVE:
            return Outcome("Positive", "bad", number)
        return (
            Outcome("Negative", "good", number)
            if line.finding == Said.NEGATIVE
            else Outcome("Measured", "info", number)
        )
    if line.reason_code == ReasonCode.WITHDRAWN:
        return Outcome("Withdrawn", "warn", more=_withdrawn(line))
    if line.standing == Standing.NOT_ANALYSED:
        return Outcome("Not analysed", "warn", more=meaning_of(line.reason_code))
    if line.standing == Standing.FAILED:
        return Outcome("Failed", "bad", more=line.failure_reason or "")
    if line.standing == Standing.KEPT:
        return Outcome("Kept", "", more=meaning_of(line.reason_code))
    if line.state == "OPEN":
        return Outcome("Images arriving", "info")
    return Outcome(WAITING.get(line.job_state or "", "Waiting for its study"), "info")


def _withdrawn(line: Line) -> str:
    """Who rejected the images, when and why."""
    found = line.withdrawal
    return meaning_of(line.reason_code) if found is None else f"{minute(found.at)}. {found.sentence}"


def meaning_of(code: str) -> str:
    """What a reason code means; the code itself if an earlier or a later version knows it."""
    known = ReasonCode.__members__.get(code)
    return known.meaning if known else code


def headline(search: Search, page: Page, pending: int) -> str:
    """The answer in one sentence."""
    parts = list(_asked(search))
    number = page.total
    if number is None:
        named = "Series" if page.lines else "No series"
        if search.order is Order.PROBABILITY and not page.by_time:
            named += ", the lowest probability first" if search.backwards else ", the highest probability first"
    else:
        # A line is of a series and a model: several models say several things of one series.
        series = len({line.series_pk for line in page.lines})
        several = number == len(page.lines) and series < number
        named = f"{count(series)} series, {count(number)} results" if several else f"{count(number)} series"
        named = named if number else "No series"
    said = f"{named} {', '.join(parts)}".strip()
    if not parts and pending:
        said += f"; {count(pending)} {'waits' if pending == 1 else 'wait'} for a result"
    return f"{said}."


def _asked(search: Search) -> Iterator[str]:
    if search.standing == Standing.NOT_ANALYSED and search.reason_code:
        yield f"not analysed: {meaning_of(search.reason_code)}"
    elif search.standing:
        yield STANDINGS[Standing(search.standing)]
    elif search.reason_code:
        yield f"with the reason “{meaning_of(search.reason_code)}”"
    if search.finding:
        yield "positive" if search.finding == Said.POSITIVE else "negative"
    if search.model:
        yield f"by {search.model}"
    if search.source:
        yield f"from {search.source}"
    if search.scanner:
        yield f"of the scanner {search.scanner}"
    if search.text:
        yield f"for “{search.text}”"
    if search.since is not None:
        yield f"received from {minute(search.since)[:10]}"
    if search.until is not None:
        yield f"until {minute(search.until - 1)[:10]}"
