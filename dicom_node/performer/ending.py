"""How a step ends, and what the worklist is told of it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from pydicom import Dataset
from sqlalchemy import Connection

from config.reasons import Refusal
from dicom_node.gateways.worklist.contents import Performer, canceled, completed, output_items
from storage import step_outcomes
from storage.step_outcomes import SeriesOutcome
from storage.workitems import Step

NOT_DELIVERED = Refusal("", "The result is in this node, and no PACS has taken it.")
Decided = tuple[Sequence[int], Refusal | None]


def summed_up(outcomes: Sequence[SeriesOutcome | None], can_be_told: Callable[[Sequence[int]], bool]) -> Decided | None:
    """How a step with these series ends; None while one of them is open.

    It is COMPLETED if one has a finding that somebody can retrieve, and CANCELED otherwise, for the first reason.
    """
    if any(one is None for one in outcomes):
        return None
    known = [one for one in outcomes if one is not None]
    ids = list(chain.from_iterable(one.results for one in known))
    found = list(chain.from_iterable(one.results for one in known if one.refusal is None))
    if not found:
        return ids, next(one.refusal for one in known if one.refusal is not None)
    return (ids, None) if can_be_told(found) else (ids, NOT_DELIVERED)


class Ending:
    """performer: who performed the step. retrieval: by destination, see `contents.output_items`."""

    def __init__(self, performer: Performer, retrieval: Mapping[str, tuple[str, str]]) -> None:
        self._performer, self._retrieval = performer, dict(retrieval)

    def can_be_told(self, tx: Connection, result_ids: Sequence[int]) -> bool:
        """Whether an object of these results is where somebody else can retrieve it."""
        return any(one.destination in self._retrieval for one in step_outcomes.outputs(tx, result_ids))

    def data_set(self, tx: Connection, step: Step) -> Dataset:
        """What the worklist is told; the same at each attempt, unless a result was delivered to one more place."""
        outputs = output_items(step_outcomes.outputs(tx, step.results), self._retrieval)
        began, ended = step.claimed_at or step.created_at, step.decided_at or step.created_at
        if step.refusal is None:
            return completed(self._performer, began, ended, outputs)
        return canceled(self._performer, began, ended, outputs, step.refusal.sentence, str(step.refusal.code))
