"""A person's own question to the index, in SQL: it can read and nothing else, for a few seconds and so many rows.

What is typed is never trusted. SQLite: a connection that opened the file read-only, `query_only`, and an authorizer
that allows reading, known functions and nothing else. PostgreSQL has no such judge: the text may hold one statement
that begins as a query and calls only functions of a list, and runs in a read-only transaction. There are locks and
server files that a read-only transaction can still reach by functions, hence the list.
"""

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from storage.database import VIEWS, Database
from storage.errors import StorageError

SECONDS = 5.0
ROWS = 1000
LONGEST_QUESTION = 10_000
LONGEST_CELL = 2_000
LARGEST_VALUE = 50_000
"""Characters. One call of a function cannot be interrupted, and takes the square of this at worst."""
LONGEST_PATTERN = 500
"""Characters of what LIKE and GLOB look for, and of what the trims remove."""
AT_ONCE = 2
STEPS = 5_000
"""Of SQLite's machine between two looks at the clock."""
SECRET = frozenset({"web_users", "web_sessions"})
"""Tables that hold no question's answer: hashes of passwords and of logins."""
FUNCTIONS = frozenset(
    (  # noqa: SIM905
        "abs avg cast ceil ceiling char_length coalesce concat count cume_dist date date_part date_trunc datetime "
        "dense_rank exists extract filter first_value floor glob greatest group_concat hex ifnull iif in instr "
        "julianday json_array json_extract json_group_array json_group_object json_object json_valid lag last_value "
        "lead least left length like ln log lower ltrim max median min mod nth_value ntile nullif over partition "
        "percent_rank percentile_cont percentile_disc position power quote rank replace right round row_number rtrim "
        "sign split_part sqrt strftime string_agg strpos substr substring sum time to_char to_timestamp total trim "
        "typeof unicode unixepoch upper using values within and or not on as from where select distinct by when then "
        "else having with recursive limit all any union except intersect between is lateral materialized varchar "
        "numeric decimal char row case bool_and bool_or every stddev variance width_bucket "
    ).split()
)
"""What may stand before a parenthesis."""
WITHOUT_CALL = frozenset(
    ("ts_stat", "current_setting", "nextval", "currval", "setseed", "txid_status", "loread", "lowrite")
)
"""Functions of PostgreSQL that x.name calls too, without parentheses; ts_stat runs the query in a text."""
ASKING = re.compile(r"(?i)(select|with|values)\b")
TOKEN = re.compile(
    r"(?P<comment>--[^\r\n]*|/\*.*?\*/)|(?P<text>'(?:[^']|'')*')|(?P<quoted>\"(?:[^\"]|\"\")*\")"
    r"|(?P<word>[^\W\d]\w*)|(?P<number>\d[\w.]*)|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_slots = threading.BoundedSemaphore(AT_ONCE)


class UnusableQuestion(StorageError):
    """A question that is not one, that may not be asked, or that takes too long. The message says which."""


@dataclass(frozen=True)
class Answer:
    """columns, rows: as the database gave them, texts clipped. cut_off: there are more rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    cut_off: bool
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A view as a question: what it answers, and the SQL that asks it."""

    name: str
    question: str
    sql: str


@cache
def saved_questions() -> tuple[Saved, ...]:
    """The questions that the views answer, in their order."""
    found = re.findall(r"^((?:-- [^\n]*\n)+)CREATE VIEW (\w+)", VIEWS.read_text(encoding="utf-8"), re.MULTILINE)
    return tuple(
        Saved(name, " ".join(line[3:] for line in comment.splitlines()), f"SELECT * FROM {name} LIMIT 100")  # noqa: S608
        for comment, name in found
    )


def ask(database: Database, sql: str, *, seconds: float = SECONDS, rows: int = ROWS) -> Answer:
    """Ask the index. Raises UnusableQuestion; StorageError if the index cannot be read."""
    sql = sql.strip().removesuffix(";").strip()
    if not sql:
        raise UnusableQuestion("there is nothing to ask")
    if len(sql) > LONGEST_QUESTION or "\0" in sql:
        raise UnusableQuestion(f"a question has {LONGEST_QUESTION} characters at most, and no NUL")
    if not _slots.acquire(timeout=seconds):
        raise UnusableQuestion("others are asking: try again in a moment")
    try:
        began = time.monotonic()
        sqlite = database.url.get_backend_name() == "sqlite"
        columns, found = (_ask_sqlite if sqlite else _ask_postgresql)(database.url, sql, seconds, rows + 1)
        shown = tuple(tuple(_clipped(value) for value in row) for row in found[:rows])
        if not columns:
            raise UnusableQuestion("a question asks for columns")
        return Answer(tuple(columns), shown, len(found) > rows, time.monotonic() - began)
    finally:
        _slots.release()


def _clipped(value: object) -> object:
    if isinstance(value, bytes | memoryview):
        return f"{len(value)} bytes"
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}…"


Found = tuple[Sequence[str], list[tuple[object, ...]]]


def _ask_sqlite(url: URL, sql: str, seconds: float, most: int) -> Found:
    path = quote(str(url.database))
    connection = sqlite3.connect(
        f"file:{path}?mode=ro", uri=True, timeout=1.0, isolation_level=None, check_same_thread=False
    )
    timer = threading.Timer(seconds, connection.interrupt)
    try:
        # The progress handler counts steps, and a step may take long; this looks at the clock alone.
        timer.start()
        connection.execute("PRAGMA query_only = ON")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, LONGEST_PATTERN)
        for name, trim in TRIMS.items():
            connection.create_function(name, 2, trim, deterministic=True)
        deadline = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
        connection.set_authorizer(_may)
        cursor = connection.execute(sql)
        rows = cursor.fetchmany(most)
        return [column[0] for column in cursor.description or ()], rows
    except sqlite3.Error as error:
        raise _unusable(str(error), seconds) from None
    except (sqlite3.Warning, ValueError, OverflowError) as error:
        raise UnusableQuestion(f"{error}") from None
    finally:
        timer.cancel()
        timer.join()
        connection.close()


def _trimmed(strip: Callable[[str, str], str]) -> Callable[[object, object], str | None]:
    """SQLite's own takes the product of both lengths, which nothing can interrupt."""

    def trim(text: object, removed: object) -> str | None:
        if text is None or removed is None:
            return None
        if len(str(removed)) > LONGEST_PATTERN:
            raise ValueError
        return strip(str(text), str(removed))

    return trim


TRIMS = {"trim": _trimmed(str.strip), "ltrim": _trimmed(str.lstrip), "rtrim": _trimmed(str.rstrip)}


def _may(action: int, first: str | None, second: str | None, _database: str | None, _inside: str | None) -> int:
    """SQLite asks this of everything that a statement would do."""
    if action == sqlite3.SQLITE_READ:
        allowed = (first or "").lower() not in SECRET
    elif action == sqlite3.SQLITE_FUNCTION:
        allowed = (second or "").lower() in FUNCTIONS
    else:
        allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _unusable(said: str, seconds: float) -> UnusableQuestion:
    if said == "interrupted":
        return UnusableQuestion(f"it takes longer than {seconds:g} s: ask for fewer rows or fewer days")
    if "not authorized" in said or "prohibited" in said or "readonly" in said or "one statement" in said:
        return UnusableQuestion(f"a question can only read, by one SELECT and known functions ({said})")
    return UnusableQuestion(said)


def _ask_postgresql(url: URL, sql: str, seconds: float, most: int) -> Found:
    refuse_more_than_a_query(sql)
    engine = _engine(url.render_as_string(hide_password=False))
    doubled = sql.replace("%", "%%")
    try:
        with engine.connect() as tx:
            tx.exec_driver_sql(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
            tx.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
            tx.exec_driver_sql("SET LOCAL work_mem = '16MB'")
            cursor = tx.connection.cursor()
            # Prepared: the server itself takes no second statement then.
            text = f"SELECT * FROM (\n{doubled}\n) AS question LIMIT {most}"  # noqa: S608 - checked above
            cursor.execute(text, (), prepare=True)  # type: ignore[call-arg]
            return [column[0] for column in cursor.description or ()], list(cursor.fetchall())
    except SQLAlchemyError as error:
        raise _translated(getattr(error, "orig", error), seconds) from None
    except engine.dialect.loaded_dbapi.Error as error:
        raise _translated(error, seconds) from None


def _translated(error: object, seconds: float) -> StorageError:
    code = str(getattr(error, "sqlstate", None) or "")
    if code == "57014":
        return _unusable("interrupted", seconds)
    if code.startswith(("08", "57P")) or not code:
        return StorageError("the index does not answer")
    return _unusable(str(error).splitlines()[0], seconds)


@cache
def _engine(url: str) -> Engine:
    """Connections of their own, each read-only from its beginning."""
    engine = create_engine(make_url(url), hide_parameters=True, pool_size=AT_ONCE, max_overflow=0, pool_pre_ping=True)

    @event.listens_for(engine, "connect")
    def _read_only(connection: Any, _record: object) -> None:
        connection.read_only = True

    return engine


def refuse_more_than_a_query(sql: str) -> None:
    """Raises UnusableQuestion unless a text is one query that calls known functions and reads no secret table."""
    if not ASKING.match(_without_comments(sql)):
        raise UnusableQuestion("a question begins with SELECT or WITH")
    if any(kind == "comment" and "/*" in text[2:] for kind, text in _tokens(sql) if text[:2] == "/*"):
        raise UnusableQuestion("a question has no comment within a comment")  # for the server it ends elsewhere
    tokens = [(kind, text) for kind, text in _tokens(sql) if kind not in ("comment", "space")]
    for number, (kind, text) in enumerate(tokens):
        after = tokens[number + 1][1] if number + 1 < len(tokens) else ""
        if text in (";", "$", "\\") or (kind == "word" and text.lower() in ("u", "e") and after[:1] in ("&", "'")):
            raise UnusableQuestion("a question is one statement, without dollar quotes and escapes")
        if kind in ("word", "quoted"):
            _refuse_name(text.strip('"').replace('""', '"').lower(), called=after == "(")


def _refuse_name(name: str, *, called: bool) -> None:
    if (
        name.startswith(("pg_", "lo_", "dblink", "brin_", "gin_"))
        or name in SECRET | WITHOUT_CALL
        or name in ("information_schema", "set_config")
    ):
        raise UnusableQuestion(f"a question can only read, and nothing of {name}")
    if called and name not in FUNCTIONS:
        raise UnusableQuestion(f"a question can only read, by known functions; {name} is not one of them")


def _without_comments(sql: str) -> str:
    return "".join(text for kind, text in _tokens(sql) if kind != "comment").strip()


def _tokens(sql: str) -> Iterator[tuple[str, str]]:
    for match in TOKEN.finditer(sql):
        yield str(match.lastgroup), match[0]
