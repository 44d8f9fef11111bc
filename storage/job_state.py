"""The states of a job and the moves between them."""

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy import select

from storage.models import jobs, patients, series, studies
from storage.moves import Machine, by_id


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    REPORTED = "REPORTED"
    FAILED = "FAILED"
    SUPERSEDED = "SUPERSEDED"


# Each state, and the states from which it may be entered. Rows are born QUEUED, when their series closes.
TRANSITIONS: Mapping[str, frozenset[str]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED}),  # handed back, lease over, postponed; `retry`
    JobState.RUNNING: frozenset({JobState.QUEUED}),  # claimed: the attempt counts from now on
    JobState.REPORTED: frozenset({JobState.RUNNING}),  # result, objects and outbox rows are on disk
    JobState.FAILED: frozenset({JobState.RUNNING, JobState.QUEUED}),  # out of attempts, or trying again will not help
    JobState.SUPERSEDED: frozenset(
        {JobState.QUEUED, JobState.RUNNING, JobState.FAILED}
    ),  # the series got another slice
}

JOB = Machine(
    "job",
    jobs,
    TRANSITIONS,
    select(
        jobs.c.state,
        jobs.c.fence,
        jobs.c.id.label("job_id"),
        series.c.series_instance_uid.label("series_uid"),
        studies.c.study_instance_uid.label("study_uid"),
        patients.c.patient_id,
    )
    .select_from(jobs.join(series).join(studies).join(patients))
    .where(by_id(jobs)),
)
