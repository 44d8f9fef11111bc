"""Which attributes of a series' header a report could not copy, for the audit trail."""

from collections.abc import Sequence

from sqlalchemy import Connection

from dicom_node.analysis.result_objects import ResultObjects
from storage import audit
from storage.jobs import ClaimedJob

_MOST_NAMED = 8


def note_repairs(tx: Connection, job: ClaimedJob, result_id: int, now: float, built: ResultObjects) -> None:
    """Which attributes of the source's header its report could not copy: their names, never their values."""
    if not (built.emptied or built.altered):
        return
    about = audit.Subject(
        series_uid=job.series_instance_uid, study_uid=job.study_instance_uid, job_id=job.job_id, result_id=result_id
    )
    detail = {"left_empty": _named(built.emptied), "altered": _named(built.altered)}
    audit.append(tx, now, "result.header_repaired", about, detail={name: said for name, said in detail.items() if said})


def _named(keywords: Sequence[str]) -> str:
    """The first few of the attributes by name, and how many more there are."""
    more = len(keywords) - _MOST_NAMED
    return ", ".join(keywords[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
