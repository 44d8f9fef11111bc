"""What a result says, by code: its findings, its measurements, and the weights of the model that made them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    FromClause,
    RowMapping,
    Table,
    case,
    insert,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite

from config.coding import NEGATIVE, POSITIVE, Code, is_positive
from storage.models import codes, findings, measurements, model_weights


def positive_column(code: FromClause) -> ColumnElement[bool | None]:
    """Whether an interpretation, a row of `codes`, is positive; null if it is neither that nor negative."""
    held = case(
        (_is(code, POSITIVE), literal(True)),
        (_is(code, NEGATIVE), literal(False)),
        else_=None,
    )
    return type_coerce(held, Boolean)


def _is(row: FromClause, code: Code) -> ColumnElement[bool]:
    return (row.c.value == code.value) & (row.c.scheme == code.scheme)


@dataclass(frozen=True)
class CodedFinding:
    """A statement about one disease or sign.

    certainty, threshold: 0 to 1; None if the model has none.  interpretation: None if it states none.
    """

    title: str
    concept: Code
    interpretation: Code | None = None
    certainty: float | None = None
    threshold: float | None = None
    category: Code | None = None
    site: Code | None = None
    laterality: Code | None = None
    segment: str | None = None

    @property
    def positive(self) -> bool | None:
        """True if positive, False if negative, None for any other interpretation."""
        return is_positive(self.interpretation)


@dataclass(frozen=True)
class CodedMeasurement:
    """One number, with its UCUM unit.

    qualifiers: what it depends on: (concept, number, UCUM unit).
    """

    concept: Code
    value: float
    unit: Code
    site: Code | None = None
    laterality: Code | None = None
    topography: Code | None = None
    derivation: Code | None = None
    method: Code | None = None
    segment: str | None = None
    qualifiers: tuple[tuple[Code, float, str], ...] = ()

    @property
    def name(self) -> str:
        """What was measured, where and how, in words; one of a kind within a result."""
        where = (self.site, self.laterality, self.topography, self.derivation, self.method)
        words = [self.concept.meaning, *(code.meaning for code in where if code is not None)]
        words += [f"{concept.meaning} {number:g} {unit}" for concept, number, unit in self.qualifiers]
        return ", ".join(dict.fromkeys([*words, self.segment] if self.segment else words))


@dataclass(frozen=True)
class Content:
    """What a result says. findings, measurements: in the order in which the model gave them."""

    findings: tuple[CodedFinding, ...] = ()
    measurements: tuple[CodedMeasurement, ...] = ()

    def value_of(self, concept: Code, laterality: Code | None = None) -> float | None:
        """The first measurement of a concept; of one side if `laterality` is given. None if there is none."""
        for one in self.measurements:
            sided = laterality is None or (one.laterality is not None and one.laterality.is_same(laterality))
            if sided and one.concept.is_same(concept):
                return one.value
        return None


_FINDING_CODES = ("concept", "interpretation", "category", "site", "laterality")
_MEASUREMENT_CODES = ("concept", "unit", "site", "laterality", "topography", "derivation", "method")


def record_content(tx: Connection, result_id: int, content: Content) -> None:
    """Write what a result says."""
    ids = _ids(tx, _codes_of(content))
    found = [
        {
            "result_id": result_id,
            "title": one.title,
            "certainty": one.certainty,
            "threshold": one.threshold,
            "segment": one.segment,
            **_references(one, _FINDING_CODES, ids),
        }
        for one in content.findings
    ]
    measured = [
        {
            "result_id": result_id,
            "value": one.value,
            "segment": one.segment,
            "qualifiers": _packed(one.qualifiers),
            **_references(one, _MEASUREMENT_CODES, ids),
        }
        for one in content.measurements
    ]
    for table, rows in ((findings, found), (measurements, measured)):
        if rows:
            tx.execute(insert(table), rows)


def record_weights(tx: Connection, model_digest: str, weights: Mapping[str, str]) -> None:
    """Note the SHA-256 of a model's weight files by role, unless they are noted already."""
    rows = [{"model_digest": model_digest, "role": role, "sha256": sha256} for role, sha256 in weights.items()]
    if rows:
        tx.execute(_insert_new(tx, model_weights), rows)


def weights_of(tx: Connection, model_digest: str) -> dict[str, str]:
    """The SHA-256 of a model's weight files by role."""
    held = select(model_weights.c.role, model_weights.c.sha256).where(model_weights.c.model_digest == model_digest)
    return {row.role: row.sha256 for row in tx.execute(held.order_by(model_weights.c.role))}


def content_of(tx: Connection, result_id: int) -> Content:
    """What a result says."""
    return contents_of(tx, [result_id])[result_id]


def contents_of(tx: Connection, result_ids: Sequence[int]) -> dict[int, Content]:
    """What each of these results says, by its id."""
    found = _rows(tx, findings, result_ids)
    measured = _rows(tx, measurements, result_ids)
    known = _codes(tx, [*found, *measured])
    return {
        result_id: Content(
            tuple(_finding(row, known) for row in found if row["result_id"] == result_id),
            tuple(_measurement(row, known) for row in measured if row["result_id"] == result_id),
        )
        for result_id in result_ids
    }


def _codes_of(content: Content) -> set[Code]:
    named = [getattr(one, name) for one in content.findings for name in _FINDING_CODES]
    named += [getattr(one, name) for one in content.measurements for name in _MEASUREMENT_CODES]
    return {code for code in named if code is not None}


def _ids(tx: Connection, wanted: Iterable[Code]) -> dict[Code, int]:
    """The rows of codes, made if there are none. In one order, so that two transactions do not wait for each other."""
    ordered = sorted(wanted, key=lambda code: (code.scheme, code.value, code.meaning))
    if not ordered:
        return {}
    ids = _held(tx, ordered)
    missing = [code for code in ordered if code not in ids]
    if missing:
        rows = [{"value": code.value, "scheme": code.scheme, "meaning": code.meaning} for code in missing]
        tx.execute(_insert_new(tx, codes), rows)
        ids |= _held(tx, missing)
    return ids


def _held(tx: Connection, wanted: Sequence[Code]) -> dict[Code, int]:
    rows = tx.execute(select(codes).where(codes.c.value.in_({code.value for code in wanted})))
    return {Code(row.value, row.scheme, row.meaning): row.id for row in rows}


def _insert_new(tx: Connection, table: Table) -> Any:
    """An INSERT that passes over rows that are there already."""
    dialect = sqlite if tx.dialect.name == "sqlite" else postgresql
    return dialect.insert(table).on_conflict_do_nothing()


def _references(one: object, names: Sequence[str], ids: Mapping[Code, int]) -> dict[str, int | None]:
    named = {name: getattr(one, name) for name in names}
    return {f"{name}_id": None if code is None else ids[code] for name, code in named.items()}


def _rows(tx: Connection, table: Table, result_ids: Sequence[int]) -> list[RowMapping]:
    # One id at a time: a seek each, and never more parameters than a statement may have.
    rows = [tx.execute(select(table).where(table.c.result_id == one).order_by(table.c.id)) for one in result_ids]
    return [row for part in rows for row in part.mappings()]


def _codes(tx: Connection, rows: Sequence[RowMapping]) -> dict[int, Code]:
    """The codes that rows refer to, by id."""
    ids = {value for row in rows for name, value in row.items() if name.endswith("_id") and name != "result_id"}
    held = tx.execute(select(codes).where(codes.c.id.in_(ids - {None})))
    return {row.id: Code(row.value, row.scheme, row.meaning) for row in held}


def _named(row: RowMapping, names: Sequence[str], known: Mapping[int, Code]) -> dict[str, Any]:
    return {name: known.get(row[f"{name}_id"]) for name in names}


def _finding(row: RowMapping, known: Mapping[int, Code]) -> CodedFinding:
    own = {name: row[name] for name in ("title", "certainty", "threshold", "segment")}
    return CodedFinding(**own, **_named(row, _FINDING_CODES, known))


def _measurement(row: RowMapping, known: Mapping[int, Code]) -> CodedMeasurement:
    own = {name: row[name] for name in ("value", "segment")}
    return CodedMeasurement(**own, qualifiers=_unpacked(row["qualifiers"]), **_named(row, _MEASUREMENT_CODES, known))


def _packed(qualifiers: tuple[tuple[Code, float, str], ...]) -> str | None:
    if not qualifiers:
        return None
    return json.dumps([[[c.value, c.scheme, c.meaning], number, unit] for c, number, unit in qualifiers])


def _unpacked(text: str | None) -> tuple[tuple[Code, float, str], ...]:
    return tuple((Code(*code), number, unit) for code, number, unit in json.loads(text or "[]"))
