"""Models: what each is, what it may be used for, how good it is said to be, and what it has been saying lately."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from config.settings import Settings
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.figures import figures_of
from dicom_node.web.charts import Chart, stacked
from dicom_node.web.context import context_of
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.pages.render import render
from dicom_node.web.pages.watches import LONGEST_REASON, Watched, watched
from dicom_node.web.pages.words import count, percent
from dicom_node.web.security.guard import require
from dicom_node.web.security.roles import Role
from inference.errors import ModelError
from inference.models.calibrated import POINT
from inference.models.cards import Card, OperatingPoint
from inference.models.registry import list_models
from inference.models.site_evaluation import NAME as OWN
from storage import weekly
from storage.jobs import Models
from storage.listings import Said, week_of
from storage.shadow_pairs import LATEST, Pair, latest_pairs
from storage.weekly import WeekCount

NAVIGATION = Entry("Models", "/models")
WEEKS = 12
REPORTS, SHADOW, UNUSED = "reports", "shadow", "not in use"


@dataclass(frozen=True)
class Week:
    """What a model said of the series that were received in one week. week: its Monday."""

    week: str
    positive: int
    negative: int
    measured: int
    refused: int

    @property
    def analysed(self) -> int:
        """All but what was refused."""
        return self.positive + self.negative + self.measured


@dataclass(frozen=True)
class Shown:
    """One model. role: REPORTS, SHADOW or UNUSED. figures: what reports print; own: they are this site's.

    watched: None if it is not.
    """

    card: Card
    digest: str
    role: str
    sources: tuple[str, ...]
    figures: tuple[OperatingPoint, ...]
    own: bool
    weeks: tuple[Week, ...]
    chart: Chart
    said: str
    watched: Watched | None = None


@dataclass(frozen=True)
class Beside:
    """The shadow model beside the one that reports, on the series that both judged last."""

    model: str
    shadow: str
    pairs: int
    both_positive: int
    both_negative: int
    differ: tuple[Pair, ...]
    apart: float | None


@require(Role.VIEWER)
def page(request: Request) -> Response:
    """The page. It shows no patient."""
    context = context_of(request)
    used, problem = _used(context.settings)
    cards, unreadable = _cards(context.settings)
    now = datetime.now(UTC).timestamp()
    monday = datetime.fromisoformat(week_of(now)).date()
    weeks = [(monday - timedelta(weeks=back)).isoformat() for back in range(WEEKS)][::-1]
    with context.database.read() as tx:
        counted = weekly.settled(tx, weeks[0], but=("source", "scanner"))
        beside = _beside(latest_pairs(tx, used.shadow.digest, used.reporting.digest)) if used and used.shadow else None
        shown = [_shown(card, used, context.settings, counted, weeks) for card in cards]
        if context.settings.watch.enabled:
            shown = [
                replace(one, watched=watched(tx, one.digest, now)) if one.role == REPORTS else one for one in shown
            ]
    order = [REPORTS, SHADOW, UNUSED]
    values: dict[str, Any] = {
        "headline": _headline(shown),
        "problems": [text for text in (problem, unreadable) if text],
        "models": sorted(shown, key=lambda one: order.index(one.role)),
        "beside": beside,
        "shadow_named": bool(used and used.shadow),
        "weeks": WEEKS,
        "latest": LATEST,
        "longest_reason": LONGEST_REASON,
    }
    return render(request, "models.html", **values)


def _used(settings: Settings) -> tuple[Models | None, str]:
    try:
        return current_models(settings), ""
    except ModelError as error:
        return None, f"No series can be analysed: {error}."


def _cards(settings: Settings) -> tuple[list[Card], str]:
    try:
        return list_models(settings.models_dir), ""
    except ModelError as error:
        return [], f"The models cannot be listed: {error}."


def _headline(shown: Sequence[Shown]) -> str:
    reporting = [one for one in shown if one.role == REPORTS]
    if not reporting:
        return "No model reports."
    names = " and ".join(f"{one.card.name} {one.card.version}" for one in reporting)
    verb = "reports" if len(reporting) == 1 else "report"
    beside = [one for one in shown if one.role == SHADOW]
    also = f"; {beside[0].card.name} {beside[0].card.version} runs beside as a shadow" if beside else ""
    warning = (
        " It is a demonstration: its results are not findings." if any(o.card.demonstration for o in reporting) else ""
    )
    return f"{names} {verb}{also}.{warning}"


def _shown(
    card: Card, used: Models | None, settings: Settings, counted: Iterable[WeekCount], weeks: Sequence[str]
) -> Shown:
    digest = card.digest()
    role, sources = UNUSED, tuple[str, ...]()
    if used and digest in {model.digest for model in (used.reporting, *used.beside)}:
        role, sources = REPORTS, tuple(used.sources.get(digest, ()))
    elif used and used.shadow and used.shadow.digest == digest:
        role = SHADOW
    figures = figures_of(card, settings.models_dir)
    own = any(point.name in (OWN, POINT) for point in figures)
    said = _weeks([one for one in counted if one.model == f"{card.name} {card.version}"], weeks)
    return Shown(card, digest, role, sources, figures, own, tuple(said), _chart(said), _said(said))


def _weeks(counted: Iterable[WeekCount], weeks: Sequence[str]) -> list[Week]:
    found: dict[str, Counter[str]] = {week: Counter() for week in weeks}
    for one in counted:
        if one.week in found:
            found[one.week]["refused" if one.reason_code else one.finding or "measured"] += one.rows
    return [
        Week(week, of[Said.POSITIVE], of[Said.NEGATIVE], of["measured"], of["refused"]) for week, of in found.items()
    ]


def _chart(weeks: Sequence[Week]) -> Chart:
    parts = [
        [("failed", one.positive), ("analysed", one.negative + one.measured), ("withheld", one.refused)]
        for one in weeks
    ]
    return stacked(parts)


def _said(weeks: Sequence[Week]) -> str:
    """What the chart shows, in words: how much was positive lately, and before."""
    analysed, refused = sum(one.analysed for one in weeks), sum(one.refused for one in weeks)
    if not analysed + refused:
        return f"It judged no series in the last {WEEKS} weeks."
    told = f"In the last {WEEKS} weeks it analysed {count(analysed)} series and refused {count(refused)}."
    judged = sum(one.positive + one.negative for one in weeks)
    if not judged:
        return told
    lately, before = weeks[-4:], weeks[:-4]
    shares = [_share_positive(part) for part in (lately, before)]
    if None in shares:
        return f"{told} {percent(sum(one.positive for one in weeks) / judged, 0)} of its findings were positive."
    return (
        f"{told} {percent(shares[0], 0)} of its findings were positive in the last 4 weeks, "
        f"{percent(shares[1], 0)} in the {WEEKS - 4} before."
    )


def _share_positive(weeks: Sequence[Week]) -> float | None:
    judged = sum(one.positive + one.negative for one in weeks)
    return sum(one.positive for one in weeks) / judged if judged else None


def _beside(pairs: Sequence[Pair]) -> Beside | None:
    if not pairs:
        return None
    both = [
        abs(one.certainty - one.shadow_certainty)
        for one in pairs
        if one.certainty is not None and one.shadow_certainty is not None
    ]
    return Beside(
        model=pairs[0].model,
        shadow=pairs[0].shadow,
        pairs=len(pairs),
        both_positive=sum(one.positive and one.shadow_positive for one in pairs),
        both_negative=sum(not one.positive and not one.shadow_positive for one in pairs),
        differ=tuple(one for one in pairs if one.differ),
        apart=fmean(both) if both else None,
    )


ROUTES = [Route("/models", page, methods=["GET"])]
