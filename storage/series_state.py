"""The states of a series and the moves between them."""

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy import select

from storage.models import patients, series, studies
from storage.moves import Machine, by_id


class SeriesState(StrEnum):
    """Whether a series still waits for instances."""

    OPEN = "OPEN"
    CLOSED = "CLOSED"


class Selection(StrEnum):
    """What was decided about a closed series if only the best of a study is analysed (see selection.py)."""

    WAITING = "WAITING"
    CHOSEN = "CHOSEN"
    ANALYSED = "ANALYSED"
    PASSED_OVER = "PASSED_OVER"
    UNSUITABLE = "UNSUITABLE"


# Each state, and the states from which it may be entered. Rows are born OPEN, with their first instance.
TRANSITIONS: Mapping[str, frozenset[str]] = {
    SeriesState.CLOSED: frozenset(
        {SeriesState.OPEN}
    ),  # complete, or given up: its job is queued in the same transaction
    SeriesState.OPEN: frozenset({SeriesState.CLOSED}),  # a late instance: a new revision
}

SERIES = Machine(
    "series",
    series,
    TRANSITIONS,
    select(
        series.c.state,
        series.c.series_instance_uid.label("series_uid"),
        studies.c.study_instance_uid.label("study_uid"),
        patients.c.patient_id,
        series.c.revision,
        series.c.instance_count,
    )
    .select_from(series.join(studies).join(patients))
    .where(by_id(series)),
)
