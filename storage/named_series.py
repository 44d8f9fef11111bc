"""Which series a person means who types a patient, an accession number or a UID. Bounded, whatever is typed."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, String, literal, select

from storage.models import patients, series, studies
from storage.names import name_key

SHORTEST_NAME = 2
MOST_PATIENTS = 200
MOST_STUDIES = 500
"""Of one patient: the latest so many."""
MOST_SERIES = 4000


def named_series(tx: Connection, text: str, identifier: str) -> tuple[list[int], bool]:
    """The numbers of the series that a text names, and whether there may be more.

    text: what was typed. identifier: the same as the index keeps identifiers of patients.
    """
    people, many_people = _people(tx, text, identifier)
    found = _studies_of(tx, people)
    many = many_people or len(found) >= MOST_SERIES
    found |= set(
        tx.scalars(
            select(studies.c.id)
            .where(studies.c.accession_number != "", studies.c.accession_number.in_({text, identifier}))
            .order_by(studies.c.id.desc())
            .limit(MOST_STUDIES)
        )
    )
    found |= set(tx.scalars(select(studies.c.id).where(studies.c.study_instance_uid == text)))
    pks = set(_series_of(tx, sorted(found, reverse=True)))
    pks |= set(tx.scalars(select(series.c.id).where(series.c.series_instance_uid == text)))
    return sorted(pks, reverse=True)[:MOST_SERIES], many or len(pks) > MOST_SERIES


def _people(tx: Connection, text: str, identifier: str) -> tuple[list[int], bool]:
    known = list(tx.scalars(select(patients.c.id).where(patients.c.patient_id.in_({text, identifier})).limit(50)))
    key = name_key(text)
    if len(key) < SHORTEST_NAME:
        return known, False
    # "name_key <> ''" as the index has it. The last character there is sorts after whatever follows the beginning.
    low, high = literal(key, String), literal(key + "\U0010ffff", String)
    beginning = (patients.c.name_key >= low) & (patients.c.name_key < high)
    named = select(patients.c.id).where(patients.c.name_key != literal("", literal_execute=True), beginning)
    people = list(tx.scalars(named.order_by(patients.c.name_key, patients.c.id).limit(MOST_PATIENTS + 1)))
    return list(dict.fromkeys([*known, *people[:MOST_PATIENTS]])), len(people) > MOST_PATIENTS


def _studies_of(tx: Connection, people: Sequence[int]) -> set[int]:
    found = set(tx.scalars(select(studies.c.id).where(studies.c.patient_pk.in_(people)).limit(MOST_SERIES)))
    if len(found) < MOST_SERIES:
        return found
    each = max(10, MOST_STUDIES // len(people))
    for one in people:  # the latest of each, and not whichever the database found first
        of_one = select(studies.c.id).where(studies.c.patient_pk == one)
        found |= set(tx.scalars(of_one.order_by(studies.c.id.desc()).limit(each)))
    return found


def _series_of(tx: Connection, of_studies: Sequence[int]) -> Iterable[int]:
    for start in range(0, len(of_studies), 500):
        some = series.c.study_pk.in_(of_studies[start : start + 500])
        yield from tx.scalars(select(series.c.id).where(some).order_by(series.c.id.desc()).limit(MOST_SERIES))
