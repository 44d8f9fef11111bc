"""Whether the model of a job may report."""

from sqlalchemy import Connection

from config.reasons import ReasonCode, Refusal
from storage import suspensions
from storage.jobs import ClaimedJob


def suspended(tx: Connection, job: ClaimedJob) -> Refusal | None:
    """Why the job's model reports nothing: a person has suspended it. None if it may; a shadow and a batch go on."""
    if job.shadow or job.batch_id is not None:
        return None
    found = suspensions.of_model(tx, job.model.name)
    if found is None:
        return None
    return Refusal(ReasonCode.MODEL_SUSPENDED, f"The model {found.model_name} is suspended here: {found.reason}")
