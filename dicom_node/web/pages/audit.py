"""Audit: what happened, to whom and by whom; saved questions; a person's own SQL; whether the trail is whole."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dicom_node.spreadsheets import csv_text
from dicom_node.web.context import context_of
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.pages.render import render
from dicom_node.web.pages.words import clock, count, duration
from dicom_node.web.pages.worklist import midnight
from dicom_node.web.security.audited import audited
from dicom_node.web.security.guard import field, require
from dicom_node.web.security.roles import Role
from storage import audit, questions
from storage.arrival import MAX_LONG_TEXT, clean
from storage.audit_check import VERIFIED
from storage.pseudonyms import Pseudonyms
from storage.questions import Answer, UnusableQuestion

NAVIGATION = Entry("Audit", "/audit", Role.AUDITOR)
LATEST, MOST_IN_FILE = 50, 10_000
FIELDS = ("patient", "study", "series", "event", "outcome", "from", "to")
COLUMNS = (
    *("id", "at", "event", "outcome", "peer_ae", "address", "patient_id", "study_uid", "series_uid", "sop_uid"),
    *("job_id", "result_id", "detail"),
)
LONGEST_NOTED = 1000
LARGEST = 2**62


@dataclass(frozen=True)
class Verified:
    """The last check of the chain, by `dicom-node audit --verify`. at: Unix seconds; None if there was none."""

    at: float | None
    whole: bool = False
    rows: int = 0


@require(Role.AUDITOR)
def show(request: Request) -> Response:
    """The page, with the latest rows."""
    return _page(request, dict.fromkeys(FIELDS, ""))


@require(Role.AUDITOR)
def search(request: Request) -> Response:
    """The rows that the form asks for, as a page or as a file."""
    asked = {name: clean(field(request, name), MAX_LONG_TEXT) for name in FIELDS}
    if field(request, "as") == "csv":
        rows = _search(request, asked, MOST_IN_FILE, None)
        audited(request, "web.read", page="audit", rows=len(rows), file=True, asked=_noted(request, asked))
        return _file("audit.csv", COLUMNS, ([_cell(row, name) for name in COLUMNS] for row in rows))
    return _page(request, asked)


@require(Role.AUDITOR)
def ask(request: Request) -> Response:
    """A question in SQL, as a page or as a file."""
    sql, answer, problem = field(request, "sql"), None, ""
    try:
        answer = questions.ask(context_of(request).database, sql)
    except UnusableQuestion as error:
        problem = str(error)
    _note_question(request, sql, answer)
    if answer is not None and field(request, "as") == "csv":
        return _file("answer.csv", answer.columns, answer.rows)
    return _page(request, dict.fromkeys(FIELDS, ""), sql=sql, answer=answer, problem=problem)


def _page(
    request: Request, asked: dict[str, str], *, sql: str = "", answer: Answer | None = None, problem: str = ""
) -> Response:
    before = _before(field(request, "before"))
    rows = [] if answer or problem else _search(request, asked, LATEST + 1, before)
    more, rows = len(rows) > LATEST, rows[-LATEST:]
    if rows:
        audited(request, "web.read", page="audit", rows=len(rows), asked=_noted(request, asked))
    values: dict[str, Any] = {
        "headline": headline(_verified(request)),
        "asked": asked,
        "rows": rows[::-1],
        "older": json.dumps([rows[0]["at"], rows[0]["id"]]) if more else "",
        "is_asked": any(asked.values()),
        "saved": questions.saved_questions(),
        "sql": sql,
        "answer": answer,
        "problem": problem,
        "limits": (duration(questions.SECONDS), count(questions.ROWS)),
        "in_file": MOST_IN_FILE,
    }
    return render(request, "audit.html", status=400 if problem else 200, **values)


def headline(found: Verified) -> tuple[str, str]:
    """Whether the trail is whole, and the tone of that: good, warn or bad."""
    command = "dicom-node audit --verify"
    if found.at is None:
        return f"Nobody has checked yet whether the audit trail is whole: run {command}.", "warn"
    said = f"{count(found.rows)} rows were checked on {clock(found.at)}"
    if not found.whole:
        return f"The audit trail is not whole: {said}. Run {command} to see what was changed.", "bad"
    days = (time.time() - found.at) / 86400
    late = f" That was {duration(time.time() - found.at)} ago." if days > 30 else ""
    return f"The audit trail is whole: {said}.{late}", "warn" if late else "good"


def _verified(request: Request) -> Verified:
    with context_of(request).database.read() as tx:
        found = audit.search(tx, event=VERIFIED, limit=1)
    if not found:
        return Verified(None)
    return Verified(found[0]["at"], found[0]["outcome"] == "WHOLE", int(found[0]["detail"].get("rows", 0)))


def _search(
    request: Request, asked: dict[str, str], limit: int, before: tuple[float, int] | None
) -> list[dict[str, Any]]:
    context = context_of(request)
    names = Pseudonyms(context.settings.storage.pseudonym_key.get_secret_value())
    since, until = midnight(asked["from"]), midnight(asked["to"], 1)
    with context.database.read() as tx:
        return list(
            audit.search(
                tx,
                patient=names.of(asked["patient"]) or None,
                study=asked["study"] or None,
                series=asked["series"] or None,
                event=asked["event"] or None,
                outcome=asked["outcome"] or None,
                since=since,
                until=until,
                limit=limit,
                before=before,
            )
        )


def _noted(request: Request, asked: dict[str, str]) -> dict[str, str] | None:
    """What was asked for, for the audit row; a patient as the index knows them."""
    key = context_of(request).settings.storage.pseudonym_key.get_secret_value()
    given = {**asked, "patient": Pseudonyms(key).of(asked["patient"])}
    return {name: value for name, value in given.items() if value} or None


def _note_question(request: Request, sql: str, answer: Answer | None) -> None:
    """With pseudonyms what was typed is not kept: it may name a patient."""
    pseudonyms = bool(context_of(request).settings.storage.pseudonym_key.get_secret_value())
    text = None if pseudonyms else clean(sql, LONGEST_NOTED)
    rows = len(answer.rows) if answer else None
    outcome = "ANSWERED" if answer else "REFUSED"
    audited(request, "web.question", outcome=outcome, sql=text, characters=len(sql), rows=rows)


def _before(text: str) -> tuple[float, int] | None:
    try:
        at, number = json.loads(text)
        return (float(at), int(number)) if abs(number) < LARGEST else None
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _cell(row: dict[str, Any], name: str) -> object:
    if name == "at":
        return clock(row["at"])
    if name == "detail":
        return json.dumps(row["detail"], ensure_ascii=False) if row["detail"] else ""
    return row[name]


def _file(name: str, columns: Sequence[str], rows: Any) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    text = csv_text(columns, rows).encode("utf-8", "replace")
    return Response(text, 200, headers, media_type="text/csv; charset=utf-8")


ROUTES = [
    Route("/audit", show, methods=["GET"]),
    Route("/audit", search, methods=["POST"]),
    Route("/audit/question", ask, methods=["POST"]),
]
