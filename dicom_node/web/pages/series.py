"""One series: what the node saw, what it says and why; the viewer; what a person may have done with it."""

import time
from typing import Any

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from config.settings import AnyDestination, Settings
from dicom_node.errors import NodeError
from dicom_node.runtime import acts
from dicom_node.web.context import WebContext, context_of
from dicom_node.web.pages import reasons, timeline
from dicom_node.web.pages.pictures import NOT_KEPT, subject_of, viewer_of
from dicom_node.web.pages.render import render
from dicom_node.web.pages.series_words import headline, of_result
from dicom_node.web.security.audited import audited
from dicom_node.web.security.guard import current_user, field, require
from dicom_node.web.security.roles import Role
from inference.errors import ModelError
from inference.models.registry import list_models
from storage import audit, deliveries, examinations, results, shown, study_results, verdicts, withdrawals
from storage import series as store
from storage.coded import content_of
from storage.errors import IllegalMove, NotFound, UnusableVerdict
from storage.object_kinds import ObjectKind

MOST_AUDIT_ROWS = 5_000
DONE = {
    "retry": "It is tried again now.",
    "resend": "The result is sent again; the deliveries below show how far it is.",
    "reanalyse": "The series waits for its new analysis. The new result will replace the present one.",
    "verdict": "Your verdict is kept. It changes no report.",
}
"""What the page says after an act, by the word in its address."""


@require(Role.VIEWER)
def series(request: Request) -> Response:
    """The page of one series."""
    series_pk, context = int(request.path_params["series"]), context_of(request)
    try:
        token = viewer_of(request).open_soon(series_pk)
        with context.database.read() as tx:
            found = _read(tx, context, series_pk)
    except NotFound:
        raise HTTPException(404) from None
    audited(request, "web.read", subject_of(request, series_pk, result_id=found["record"].result_id), page="series")
    found["why"] = [_why(request, series_pk, one) for one in _refusals(found)]
    found["token"] = token
    found["start"] = next((f"#{one.plane}-{one.index + 1}" for why, _ in found["why"] for one in why.pictures), "")
    found["most_rows"] = MOST_AUDIT_ROWS
    found["done"] = DONE.get(request.query_params.get("done", ""), "")
    return render(request, "series.html", headers=NOT_KEPT, **found)


def _read(tx: Connection, context: WebContext, series_pk: int) -> dict[str, Any]:
    record = store.get_series(tx, series_pk)
    objects = shown.objects_of_series(tx, series_pk)
    current = results.all_current_of(tx, series_pk)
    standing = [results.get_result(tx, one) for one in current]
    cards = _cards(context)
    findings = [finding for one in current for finding in content_of(tx, one).findings]
    others = study_results.on_the_same(findings, study_results.others(tx, series_pk))
    rows = audit.search(tx, series=record.series_instance_uid, limit=MOST_AUDIT_ROWS)
    return {
        "record": record,
        "headline": headline(record, standing, withdrawals.of_series(tx, [series_pk]).get(series_pk)),
        "results": [
            of_result(
                one,
                cards.get(str(one["model_digest"])),
                deliveries.of_result(tx, int(str(one["id"]))),
                verdicts.verdicts_on(tx, int(str(one["id"]))),
                examinations.change_of(tx, int(str(one["id"]))),
            )
            for one in standing
        ],
        "objects": objects,
        "summaries": [one for one in objects if one.kind is ObjectKind.SUMMARY],
        "others": others,
        "differ": study_results.differ(findings, others),
        "models": sorted({f"{card.name}:{card.version}" for card in cards.values()}),
        "destinations": [one.name for one in _takers(context.settings, canary=record.canary)],
        "timeline": timeline.told(rows),
        "all_rows": len(rows) < MOST_AUDIT_ROWS,
    }


def _takers(settings: Settings, *, canary: bool) -> tuple[AnyDestination, ...]:
    """The destinations that its results may be sent to."""
    return settings.destinations_of_canaries if canary else tuple(d for d in settings.destinations if d.send_results)


def _cards(context: WebContext) -> dict[str, Any]:
    """The cards of the models that are here, by digest; none if one of them cannot be read."""
    try:
        return {card.digest(): card for card in list_models(context.settings.models_dir)}
    except ModelError:
        return {}


def _refusals(found: dict[str, Any]) -> list[tuple[str, str, list[Any]]]:
    """Code, sentence and checks of each reason: of the results, or of the decision before any."""
    of_results = [
        (str(one.reason_code), str(one.reason_text or ""), one.checks) for one in found["results"] if one.reason_code
    ]
    record = found["record"]
    if not of_results and record.refusal_code and not found["results"]:
        return [(record.refusal_code, record.refusal_text or "", [])]
    return list({one[0]: one for one in of_results}.values())


def _why(request: Request, series_pk: int, reason: tuple[str, str, list[Any]]) -> tuple[reasons.Why, str]:
    """A reason, and the token of the images that show it."""
    code, sentence, checks = reason
    if not reasons.needs_images(code):
        return reasons.why(code, sentence, checks, None), ""
    opened = viewer_of(request).open(series_pk)
    return reasons.why(code, sentence, checks, opened), opened.token


# What a person has done: each in one transaction with its audit row; then the page again, with what was done in words.


@require(Role.OPERATOR)
def retry(request: Request) -> Response:
    """Try a failed analysis, or a delivery, again."""

    def act(tx: Connection, _context: WebContext, series_pk: int) -> acts.Done:
        delivery = field(request, "delivery")
        if not delivery:
            return acts.retry_series(tx, series_pk, time.time())
        done = acts.retry_delivery(tx, _number(delivery), time.time())
        _of_this_series(tx, series_pk, done.about)
        return done

    return _done(request, "web.retry", act)


@require(Role.OPERATOR)
def resend(request: Request) -> Response:
    """Send a result again."""

    def act(tx: Connection, context: WebContext, series_pk: int) -> acts.Done:
        to = field(request, "to")
        done = acts.resend(tx, context.settings, _number(field(request, "result")), [to] if to else [], time.time())
        _of_this_series(tx, series_pk, done.about)
        return done

    return _done(request, "web.resend", act)


@require(Role.OPERATOR)
def reanalyse(request: Request) -> Response:
    """Analyse the series again, with a model of choice."""

    def act(tx: Connection, context: WebContext, series_pk: int) -> acts.Done:
        return acts.reanalyse(tx, context.settings, series_pk, field(request, "model") or None, time.time())

    return _done(request, "web.reanalyse", act)


@require(Role.READER)
def verdict(request: Request) -> Response:
    """Keep a reader's verdict on a result. Its own audit row says so; it never changes a report."""
    series_pk, context = int(request.path_params["series"]), context_of(request)
    reader = current_user(request).name
    try:
        with context.database.transaction() as tx:
            result_id = _number(field(request, "result"))
            if results.input_of(tx, result_id).series_pk != series_pk:
                raise NotFound("the series has no such result")
            given = (field(request, "verdict"), field(request, "own_opinion"), field(request, "text"))
            verdicts.record_verdict(tx, result_id, reader, *given, time.time())
    except (UnusableVerdict, NotFound) as error:
        raise HTTPException(400, _sentence(error)) from None
    return _back(series_pk, "verdict", "#verdicts")


def _done(request: Request, event: str, act: Any) -> Response:
    series_pk, context = int(request.path_params["series"]), context_of(request)
    if field(request, "sure") != "yes":
        raise HTTPException(400, "Confirm what is to be done.")
    try:
        with context.database.transaction() as tx:
            done: acts.Done = act(tx, context, series_pk)
            audited(request, event, done.about, tx=tx, **done.detail)
    except (NodeError, ModelError, IllegalMove, NotFound) as error:
        raise HTTPException(400, _sentence(error)) from None
    return _back(series_pk, event.removeprefix("web."))


def _of_this_series(tx: Connection, series_pk: int, about: audit.Subject) -> None:
    """A number that was typed may be of another series: then nothing is done."""
    if about.series_uid != store.get_series(tx, series_pk).series_instance_uid:
        raise NotFound("the series has no such result or delivery")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise NotFound("that is not the number of anything")
    return int(text)


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _back(series_pk: int, done: str, where: str = "") -> Response:
    return RedirectResponse(f"/series/{series_pk}?done={done}{where}", 303)


ROUTES = [
    Route("/series/{series:number}", series),
    Route("/series/{series:number}/retry", retry, methods=["POST"]),
    Route("/series/{series:number}/resend", resend, methods=["POST"]),
    Route("/series/{series:number}/reanalyse", reanalyse, methods=["POST"]),
    Route("/series/{series:number}/verdict", verdict, methods=["POST"]),
]
