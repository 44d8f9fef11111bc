"""The images that a step is about: which of them are not here, and having them fetched."""

from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from dicom_node.errors import NodeError
from dicom_node.scu.association import NoContext, PeerUnavailable
from dicom_node.scu.query import SeriesKey
from storage import step_outcomes, workitems
from storage.workitems import InputSeries, Step

AWAY = (PeerUnavailable, NoContext)
Missing = tuple[InputSeries, frozenset[str]]
Fetch = Callable[[InputSeries, frozenset[str], SeriesKey], None]
"""Fetches missing instances of a series from who has them. Raises one of AWAY, or NoSource."""


class NoSource(NodeError):
    """Nobody that the settings name has the images."""


def missing_of(tx: Connection, step: Step) -> list[Missing]:
    """What is to be fetched; nothing of a series with a result that was made of all these images."""
    inputs = [one for one in workitems.inputs_of(tx, step.id) if not step_outcomes.is_reported(tx, one)]
    lacking = [(one, workitems.missing_of(tx, one, deleted_is_here=False)) for one in inputs]
    return [(one, uids) for one, uids in lacking if uids]


def fetch_each(fetch: Fetch, wanted: Sequence[Missing], patient_id: str) -> tuple[str, bool]:
    """Fetch series by series. Returns why something may be missing still, and whether who has it is away."""
    error, is_away = "images did not come", False
    for one, uids in wanted:
        try:
            fetch(one, uids, SeriesKey(patient_id, one.study_uid, one.series_uid))
        except NoSource as none:
            error = str(none)
        except AWAY as away:
            error, is_away = str(away), True
    return error, is_away
