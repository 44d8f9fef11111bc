"""The worklist: series by what is asked for, in pages, whatever the history.

Listings of one kind (see listings.py) are in one piece of an index. So a page is merged from the kinds that match: one
statement finds the first listing of each, and only the kinds with the foremost ones can have a place on the page. What
a person types (a patient, an accession number, a UID) names few series; these are gathered first and then filtered.

A page goes on after a place (`Place`), never after a number of rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    RowMapping,
    Select,
    and_,
    bindparam,
    func,
    select,
    text,
    tuple_,
)

from storage.arrival import MAX_LONG_TEXT, clean
from storage.listed_series import Line, lines_of
from storage.listings import ALL_WEEKS, KIND, week_of
from storage.models import listing_kinds, listing_weeks, listings, patients, series, studies
from storage.named_series import named_series
from storage.prepared import Prepared

PAGE = 50
GATHERED = 20_000
"""Listings that may be sorted in memory."""
AT_ONCE = 500
"""Numbers in one statement."""


class Order(StrEnum):
    """What comes first. RECEIVED, PROBABILITY: the latest, the highest. The others: by name, then the latest."""

    RECEIVED = "received"
    PROBABILITY = "probability"
    SOURCE = "source"
    OUTCOME = "outcome"
    MODEL = "model"
    PATIENT = "patient"


# What the kinds are grouped by for an order by name.
GROUPED = {
    Order.SOURCE: ("source",),
    Order.OUTCOME: ("standing", "reason_code", "finding"),
    Order.MODEL: ("model",),
}


@dataclass(frozen=True)
class Search:
    """What is asked for; None or "" means anything.

    text: a Patient ID, the beginning of a patient's name, an accession number, or a UID of a study or series.
    since, until: when the first instance of the series came, Unix seconds, the latter excluded.
    source, scanner, standing, reason_code, model, finding: see `listings.Kind`.
    backwards: the other end of the order first.
    """

    text: str = ""
    since: float | None = None
    until: float | None = None
    source: str = ""
    scanner: str = ""
    standing: str = ""
    reason_code: str = ""
    model: str = ""
    finding: str = ""
    order: Order = Order.RECEIVED
    backwards: bool = False

    def cleaned(self) -> "Search":
        """Without what no header in the index has and no database takes, such as NUL."""
        texts: dict[str, Any] = {name: clean(getattr(self, name), MAX_LONG_TEXT) for name in ("text", *KIND)}
        return replace(self, **texts)

    @property
    def is_by_kind(self) -> dict[str, str]:
        """What is asked of the kind."""
        return {name: getattr(self, name) for name in KIND if getattr(self, name)}


@dataclass(frozen=True)
class Place:
    """Where a page ends: the last line's listing, the value that it is ordered by, and its group if there are any."""

    value: float
    listing: int
    group: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """lines: the series found, at most PAGE listings. next: where to go on, None at the end.

    total: how many listings match; None if nobody has counted that.
    cut_off: more series are called so than can be searched; the text must say more.
    by_time: they are ordered by time, because too many match to be ordered as was asked.
    """

    lines: list[Line]
    next: Place | None
    total: int | None
    cut_off: bool = False
    by_time: bool = False


def find(tx: Connection, search: Search, after: Place | None = None, identifier: str = "", most: int = PAGE) -> Page:
    """One page. identifier: `text` as the index keeps identifiers (see pseudonyms.py)."""
    search = search.cleaned()
    if search.text:
        return _named(tx, search, after, clean(identifier) or search.text, most)
    if search.order is Order.PATIENT:
        search = replace(search, order=Order.RECEIVED)
    if search.order is Order.PROBABILITY and (search.since is not None or search.until is not None):
        return _by_probability_within(tx, search, after, most)
    found = _grouped(tx, search, after, most) if search.order in GROUPED else _merged(tx, search, after, most)
    return _page(tx, found, most, _total(tx, search))


def _page(tx: Connection, found: Sequence[Place], most: int, total: int | None, **how: bool) -> Page:
    kept = found[:most]
    lines = lines_of(tx, [place.listing for place in kept])
    return Page(lines, kept[-1] if len(found) > most else None, total, **how)


def choices(tx: Connection) -> dict[str, list[str]]:
    """What can be asked for: the sources, models and so on that the worklist has, in alphabetical order."""
    rows = tx.execute(select(*(listing_kinds.c[name] for name in KIND))).mappings().all()
    return {name: sorted({str(row[name]) for row in rows} - {""}) for name in KIND}


def _total(tx: Connection, search: Search) -> int | None:
    if search.since is not None or search.until is not None or search.order is Order.PROBABILITY:
        return None
    return count(tx, search)


def count(tx: Connection, search: Search) -> int:
    """How many listings match what is asked of the kind."""
    return _count(tx, search, listing_weeks.c.week == ALL_WEEKS)


def _count(tx: Connection, search: Search, weeks: ColumnElement[bool]) -> int:
    counted = select(func.coalesce(func.sum(listing_weeks.c.rows), 0)).select_from(listing_weeks)
    kinds = select(listing_kinds.c.id).where(*_of_kind(search))
    condition = [listing_weeks.c.kind.in_(kinds)] if search.is_by_kind else []
    return int(tx.scalar(counted.where(weeks, *condition)) or 0)


def _of_kind(search: Search) -> list[ColumnElement[bool]]:
    wanted = [listing_kinds.c[name] == value for name, value in search.is_by_kind.items()]
    if search.order is Order.PROBABILITY:
        wanted.append(listing_kinds.c.standing == "ANALYSED")
    return wanted


def _between(search: Search) -> list[ColumnElement[bool]]:
    found = []
    if search.since is not None:
        found.append(listings.c.received_at >= search.since)
    if search.until is not None:
        found.append(listings.c.received_at < search.until)
    return found


class _Walk:
    """One way through the listings of each kind, along an index."""

    def __init__(self, search: Search, column: str) -> None:
        self.column = column
        self.backwards = search.backwards
        self._bounds = search.since is not None, search.until is not None
        self._values: dict[str, object] = {"since": search.since, "until": search.until}

    def sort(self, places: Iterable[Place]) -> list[Place]:
        return sorted(places, key=lambda one: (one.value, one.listing), reverse=not self.backwards)

    def heads(self, tx: Connection, kinds: Sequence[ColumnElement[bool]], after: Place | None) -> list[tuple[int, Any]]:
        """The kinds that have a listing after that place, with the value of the first one; the foremost first."""
        first = _first_of(self.column, self.backwards, *self._bounds, after is not None)
        head = first.where(listings.c.kind == listing_kinds.c.id).with_only_columns(listings.c[self.column])
        query = select(listing_kinds.c.id, head.limit(1).correlate(listing_kinds).scalar_subquery()).where(*kinds)
        rows = tx.execute(query, self._with(after)).all()
        found = [(row[0], row[1]) for row in rows if row[1] is not None]
        return sorted(found, key=lambda one: one[1], reverse=not self.backwards)

    def merge(self, tx: Connection, heads: Sequence[tuple[int, Any]], after: Place | None, most: int) -> list[Place]:
        """The first listings of these kinds after a place, one more than `most`."""
        of_kind = _of_one_kind(self.column, self.backwards, *self._bounds, after is not None)
        values = self._with(after) | {"most": most + 1}
        found: list[Place] = []
        for kind in _foremost(heads, most + 1):
            found += [Place(*row) for row in of_kind.execute(tx, values | {"kind": kind})]
        return self.sort(found)[: most + 1]

    def _with(self, after: Place | None) -> dict[str, object]:
        values = {name: value for name, value in self._values.items() if value is not None}
        return values if after is None else values | {"value": after.value, "listing": after.listing}


@cache
def _of_one_kind(column: str, backwards: bool, since: bool, until: bool, after: bool) -> Prepared:
    first = _first_of(column, backwards, since, until, after)
    of_kind = first.where(listings.c.kind == bindparam("kind", type_=BigInteger))
    return Prepared(of_kind.suffix_with(text("LIMIT :most")))  # `limit` would add an OFFSET on SQLite


@cache
def _first_of(column: str, backwards: bool, since: bool, until: bool, after: bool) -> Select[Any]:
    """Listings from the place on, the foremost first: value and number of each."""
    of, number = listings.c[column], listings.c.id
    query = select(of, number).order_by(*(one.asc() if backwards else one.desc() for one in (of, number)))
    if column == "probability":
        query = query.where(of.is_not(None))
    if since:
        query = query.where(listings.c.received_at >= bindparam("since", type_=Double))
    if until:
        query = query.where(listings.c.received_at < bindparam("until", type_=Double))
    if not after:
        return query
    value, listing = bindparam("value", type_=Double), bindparam("listing", type_=BigInteger)
    here, there = tuple_(of, number), tuple_(value, listing)
    # The first condition alone is what SQLite finds in the index.
    bound = of >= value if backwards else of <= value
    return query.where(bound, here > there if backwards else here < there)


def _foremost(heads: Sequence[tuple[int, Any]], most: int) -> list[int]:
    """The kinds whose first listing can be among the foremost so many: those at the same place as the last one too."""
    if len(heads) <= most:
        return [kind for kind, _ in heads]
    last = heads[most - 1][1]
    return [kind for number, (kind, value) in enumerate(heads) if number < most or value == last]


def _merged(tx: Connection, search: Search, after: Place | None, most: int) -> list[Place]:
    walk = _Walk(search, "probability" if search.order is Order.PROBABILITY else "received_at")
    return walk.merge(tx, walk.heads(tx, _of_kind(search), after), after, most)


def _grouped(tx: Connection, search: Search, after: Place | None, most: int) -> list[Place]:
    """By the name of what the kinds have in common, and within that the latest first."""
    names = GROUPED[search.order]
    walk = _Walk(replace(search, backwards=False), "received_at")
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in tx.execute(select(listing_kinds).where(*_of_kind(search))).mappings():
        groups.setdefault(tuple(row[name] for name in names), []).append(row["id"])
    heads = dict(walk.heads(tx, _of_kind(search), None))
    found: list[Place] = []
    for group in sorted(groups, reverse=search.backwards):
        if after is not None and (group > after.group if search.backwards else group < after.group):
            continue
        here = after if after is not None and group == after.group else None
        wanted = most - len(found)
        kinds = [(kind, heads[kind]) for kind in groups[group] if kind in heads]
        if here is not None:
            kinds = walk.heads(tx, [listing_kinds.c.id.in_(groups[group])], here)
        kinds.sort(key=lambda one: one[1], reverse=True)
        found += [replace(place, group=group) for place in walk.merge(tx, kinds, here, wanted)] if kinds else []
        if len(found) > most:
            break
    return found


def _by_probability_within(tx: Connection, search: Search, after: Place | None, most: int) -> Page:
    """Of some days: in memory if they are few, else by time."""
    weeks = listing_weeks.c.week >= week_of(search.since if search.since is not None else 0.0)
    if search.until is not None:
        weeks = and_(weeks, listing_weeks.c.week <= week_of(search.until))
    if _count(tx, search, weeks) > GATHERED:
        by_time = replace(search, order=Order.RECEIVED)
        found = _merged(tx, replace(by_time, standing=search.standing or "ANALYSED"), after, most)
        return _page(tx, found, most, None, by_time=True)
    of_kind = listings.c.kind.in_(select(listing_kinds.c.id).where(*_of_kind(search)))
    rows = tx.execute(
        select(listings.c.probability, listings.c.id).where(
            of_kind, *_between(search), listings.c.probability.is_not(None)
        )
    )
    walk = _Walk(search, "probability")
    places = walk.sort(Place(row[0], row[1]) for row in rows)
    return _page(tx, _from(places, after, most), most, len(places))


def _from(places: Sequence[Place], after: Place | None, most: int) -> Sequence[Place]:
    start = 0
    if after is not None:
        start = next((n + 1 for n, place in enumerate(places) if place.listing == after.listing), 0)
    return places[start : start + most + 1]


def _named(tx: Connection, search: Search, after: Place | None, identifier: str, most: int) -> Page:
    """What a text names, filtered and ordered in memory."""
    pks, cut_off = named_series(tx, search.text, identifier)
    rows: list[RowMapping] = []
    for start in range(0, len(pks), AT_ONCE):
        some = listings.c.series_pk.in_(pks[start : start + AT_ONCE])
        rows += tx.execute(_BRIEF.where(some, *_of_kind(search), *_between(search))).mappings()
    places = [Place(row["received_at"], row["id"]) for row in _in_order(rows, search)]
    return _page(tx, _from(places, after, most), most, len(places), cut_off=cut_off)


_BRIEF = select(
    *(listings.c[name] for name in ("id", "received_at", "probability")),
    *(listing_kinds.c[name] for name in KIND),
    *(patients.c[name] for name in ("name_key", "patient_id")),
).select_from(
    listings.join(listing_kinds, listing_kinds.c.id == listings.c.kind)
    .join(series, series.c.id == listings.c.series_pk)
    .join(studies)
    .join(patients)
)


def _in_order(rows: Iterable[RowMapping], search: Search) -> list[RowMapping]:
    newest = sorted(rows, key=lambda row: (row["received_at"], row["id"]), reverse=True)
    if search.order is Order.RECEIVED:
        return newest[::-1] if search.backwards else newest
    if search.order is Order.PROBABILITY:
        said = [row for row in newest if row["probability"] is not None]
        return sorted(said, key=lambda row: float(row["probability"]), reverse=not search.backwards)
    names = GROUPED.get(search.order, ("name_key", "patient_id"))
    return sorted(newest, key=lambda row: tuple(row[name] for name in names), reverse=search.backwards)
