"""Not analysed: which reasons, scanners, sources and weeks, and what the site can change."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from config.reasons import ReasonCode
from dicom_node.web.charts import Chart, stacked
from dicom_node.web.context import context_of
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.pages.render import render
from dicom_node.web.pages.words import count, percent, plural
from dicom_node.web.pages.worklist_words import meaning_of
from dicom_node.web.security.guard import require
from dicom_node.web.security.roles import Role
from storage import weekly
from storage.listings import Standing, week_of
from storage.weekly import WeekCount

NAVIGATION = Entry("Not analysed", "/not-analysed")
CHOICES = (4, 12, 52)
MOST = 40
"""Rows of a table."""
LONGEST = 64


@dataclass(frozen=True)
class Reason:
    """One reason. meaning, advice: empty for a code of another version. latest: what was last said with it."""

    code: str
    meaning: str
    advice: str
    times: int
    latest: str
    link: str


@dataclass(frozen=True)
class Origin:
    """A source or a scanner. most: the reason that it has most often."""

    name: str
    refused: int
    whole: int
    most: str
    link: str

    @property
    def share(self) -> float:
        """How many of its analyses gave no result, 0 to 1."""
        return self.refused / self.whole


@dataclass(frozen=True)
class Week:
    """week: its Monday."""

    week: str
    analysed: int
    refused: int


@require(Role.VIEWER)
def page(request: Request) -> Response:
    """The page. It shows no patient."""
    asked = _asked(request)
    weeks = asked["weeks"]
    monday = datetime.now(UTC).timestamp()
    first = datetime.fromisoformat(week_of(monday)) - timedelta(weeks=weeks - 1)
    with context_of(request).database.read() as tx:
        every = weekly.settled(tx, first.date().isoformat(), but=("week", "model", "finding"))
        names = {"source": sorted({one.source for one in every}), "scanner": sorted({one.scanner for one in every})}
        found = [one for one in every if asked["source"] in ("", one.source) and asked["scanner"] in ("", one.scanner)]
        refused = [one for one in found if one.reason_code]
        latest = weekly.latest_sentences(tx, sorted({one.reason_code for one in refused}))
        in_weeks = _in_weeks(tx, first.date().isoformat(), asked)
    reasons = _reasons(refused, latest, asked)
    times, whole = sum(one.rows for one in refused), sum(one.rows for one in found)
    by_week = _weeks(in_weeks, first.date().isoformat(), weeks)
    values: dict[str, Any] = {
        "headline": _headline(asked, times, whole, reasons),
        "asked": asked,
        "choices": CHOICES,
        "names": names,
        "reasons": reasons[:MOST],
        "sources": _origins(found, lambda one: one.source, "source", asked)[:MOST],
        "scanners": _origins(found, lambda one: one.scanner, "scanner", asked)[:MOST],
        "weeks": by_week,
        "chart": _chart(by_week),
        "times": times,
    }
    return render(request, "not_analysed.html", **values)


def _in_weeks(tx: Connection, first: str, asked: dict[str, Any]) -> list[WeekCount]:
    """What was analysed or not in each week: without source and scanner unless they are asked for, for fewer rows."""
    unasked = [name for name in ("source", "scanner") if not asked[name]]
    every = weekly.settled(tx, first, but=("model", "finding", *unasked))
    return [one for one in every if asked["source"] in ("", one.source) and asked["scanner"] in ("", one.scanner)]


def _asked(request: Request) -> dict[str, Any]:
    given = request.query_params
    weeks = int(given["weeks"]) if given.get("weeks") in {str(one) for one in CHOICES} else CHOICES[1]
    return {"weeks": weeks, **{name: given.get(name, "")[:LONGEST] for name in ("source", "scanner")}}


def _headline(asked: dict[str, Any], times: int, whole: int, reasons: Sequence[Reason]) -> str:
    """The answer in words."""
    origin = "".join(f" {word} {asked[name]}" for name, word in (("source", "from"), ("scanner", "of")) if asked[name])
    span = f"In the last {asked['weeks']} weeks"
    if not whole:
        return f"{span} no series{origin} was analysed or refused."
    if not times:
        return f"{span} every series{origin} was analysed, with {plural(whole, 'result')}."
    share = percent(times / whole, 0).replace(" ", "\N{NO-BREAK SPACE}")
    said = f"{span} {count(times)} of {count(whole)} analyses{origin} gave no result ({share})."
    first = reasons[0]
    return f"{said} Most often: {first.meaning or first.code}."


def _reasons(refused: Iterable[WeekCount], latest: dict[str, str], asked: dict[str, Any]) -> list[Reason]:
    times: Counter[str] = Counter()
    for one in refused:
        times[one.reason_code] += one.rows
    return [_reason(code, number, latest.get(code, ""), asked) for code, number in times.most_common()]


def _reason(code: str, times: int, latest: str, asked: dict[str, Any]) -> Reason:
    known = ReasonCode.__members__.get(code)
    meaning, advice = (known.meaning, known.advice) if known else ("", "")
    return Reason(code, meaning, advice, times, latest, _worklist(asked, reason=code))


def _worklist(asked: dict[str, Any], **more: str) -> str:
    """The address of the series themselves."""
    origin = {name: asked[name] for name in ("source", "scanner") if asked[name]}
    return f"/worklist?{urlencode({'outcome': Standing.NOT_ANALYSED.value, **origin, **more})}"


def _origins(
    found: Iterable[WeekCount], name_of: Callable[[WeekCount], str], what: str, asked: dict[str, Any]
) -> list[Origin]:
    """Sources or scanners, those that lose most series first."""
    whole: Counter[str] = Counter()
    refused: dict[str, Counter[str]] = {}
    for one in found:
        whole[name_of(one)] += one.rows
        if one.reason_code:
            refused.setdefault(name_of(one), Counter())[one.reason_code] += one.rows
    made = []
    for name, of_reason in refused.items():
        here = {**asked, what: name}
        link = f"/not-analysed?{urlencode({key: value for key, value in here.items() if value})}"
        most = of_reason.most_common(1)[0][0]
        made.append(Origin(name, of_reason.total(), whole[name], meaning_of(most), link))
    return sorted(made, key=lambda one: (-one.refused, one.name))


def _weeks(found: Iterable[WeekCount], first: str, weeks: int) -> list[Week]:
    analysed: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for one in found:
        (refused if one.reason_code else analysed)[one.week] += one.rows
    begin = datetime.fromisoformat(first)
    days = [(begin + timedelta(weeks=number)).date().isoformat() for number in range(weeks)]
    return [Week(day, analysed[day], refused[day]) for day in days]


def _chart(weeks: Sequence[Week]) -> Chart:
    return stacked([[("withheld", one.refused), ("analysed", one.analysed)] for one in weeks])


ROUTES = [Route("/not-analysed", page, methods=["GET"])]
