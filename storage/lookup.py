"""Find what a person names: a series by number, UID or the beginning of one, a study by UID, a result by number."""

from typing import Any

from sqlalchemy import Column, Connection, Select, select

from storage.errors import Ambiguous, NotFound
from storage.models import results, series, studies
from storage.results import latest_of_series

LONGEST_NUMBER = 18
"""Digits; a longer number is the beginning of a UID."""
SHOWN = 5


def find_series(tx: Connection, wanted: str) -> int:
    """The number of a series in the index, given its number, its Series Instance UID, or a unique beginning of one.

    Raises NotFound, or Ambiguous when several series begin like that.
    """
    if wanted.isascii() and wanted.isdigit() and len(wanted) <= LONGEST_NUMBER:
        by_number: int | None = tx.scalar(select(series.c.id).where(series.c.id == int(wanted)))
        if by_number is not None:
            return by_number
    uid = series.c.series_instance_uid
    exact: int | None = tx.scalar(select(series.c.id).where(uid == wanted))
    if exact is not None:
        return exact
    found = list(tx.scalars(_beginning_with(tx, series.c.id, uid, wanted))) if _may_begin_a_uid(wanted) else []
    if not found:
        raise NotFound(
            f"there is no series {wanted!r}; `dicom-node series list` shows them: "
            "give a number, a Series Instance UID, or its beginning"
        )
    if len(found) > 1:
        some = ", ".join(map(str, found[:SHOWN])) + (", ..." if len(found) > SHOWN else "")
        raise Ambiguous(f"several series have a UID that begins with {wanted!r}: numbers {some}; give more of it")
    return int(found[0])


def find_study(tx: Connection, wanted: str) -> str:
    """The Study Instance UID that is this text or alone begins with it.

    Raises NotFound, or Ambiguous when several studies begin like that.
    """
    uid = studies.c.study_instance_uid
    if tx.scalar(select(studies.c.id).where(uid == wanted)) is not None:
        return wanted
    found = list(tx.scalars(_beginning_with(tx, uid, uid, wanted))) if _may_begin_a_uid(wanted) else []
    if len(found) > 1:
        raise Ambiguous(f"several studies have a UID that begins with {wanted!r}; give more of it")
    if not found:
        raise NotFound(f"there is no study {wanted!r}: give a Study Instance UID, or its beginning")
    return str(found[0])


def find_result(tx: Connection, wanted: str) -> int:
    """The number of a result, given it, or a series (a UID or a beginning of one) for its latest result.

    Raises NotFound or Ambiguous.
    """
    if wanted.isascii() and wanted.isdigit() and len(wanted) <= LONGEST_NUMBER:
        found: int | None = tx.scalar(select(results.c.id).where(results.c.id == int(wanted)))
        if found is not None:
            return found
        raise NotFound(f"there is no result {wanted}; `dicom-node series show SERIES` shows a series' result")
    uid = tx.scalar(select(series.c.series_instance_uid).where(series.c.id == find_series(tx, wanted)))
    return latest_of_series(tx, str(uid))


def _may_begin_a_uid(text: str) -> bool:
    return bool(text) and set(text) <= set("0123456789.")


def _beginning_with(tx: Connection, what: Column[Any], uid: Column[Any], prefix: str) -> Select[Any]:
    # ":" sorts after the digits and the point. A PostgreSQL index with a language's collation has no such range.
    begins = (uid >= prefix) & (uid < prefix + ":") if tx.dialect.name == "sqlite" else uid.startswith(prefix)
    return select(what).where(begins).order_by(what).limit(SHOWN + 1)
