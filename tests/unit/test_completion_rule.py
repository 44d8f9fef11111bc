"""The rule of completeness, case by case."""

import pytest

from dicom_node.completion.closing import PACS_COUNT, PACS_HAS_FEWER, PACS_SILENT, Action, Decision, decide
from storage.series import QUIET_TIME

WAIT = Decision(Action.WAIT)


@pytest.mark.parametrize(
    ("here", "there", "asked", "quiet", "may_fetch", "expected"),
    [
        # No PACS to ask: the quiet time alone.
        (5, None, False, False, False, WAIT),
        (5, None, False, True, False, Decision(Action.CLOSE, QUIET_TIME)),
        # Equal: complete at once, whether quiet or not.
        (5, 5, True, False, True, Decision(Action.CLOSE, PACS_COUNT)),
        (5, 5, True, True, False, Decision(Action.CLOSE, PACS_COUNT)),
        # More there: fetch, then wait for the quiet time, then give up.
        (4, 5, True, False, True, Decision(Action.FETCH)),
        (4, 5, True, True, True, Decision(Action.FETCH)),
        (4, 5, True, False, False, WAIT),
        (4, 5, True, True, False, Decision(Action.REFUSE, PACS_COUNT)),
        # The PACS cannot say, or knows less than we do: the quiet time, and a note why.
        (5, None, True, False, True, WAIT),
        (5, None, True, True, True, Decision(Action.CLOSE, PACS_SILENT)),
        (5, 0, True, False, True, WAIT),
        (5, 0, True, True, True, Decision(Action.CLOSE, PACS_HAS_FEWER)),
        (5, 4, True, True, True, Decision(Action.CLOSE, PACS_HAS_FEWER)),
    ],
)
def test_a_series_is_decided_by_count_and_quiet_time(
    here: int, there: int | None, asked: bool, quiet: bool, may_fetch: bool, expected: Decision
) -> None:
    decision = decide(here, there, asked=asked, quiet=quiet, may_fetch=may_fetch)
    assert decision.action == expected.action
    if decision.action != Action.WAIT and decision.action != Action.FETCH:
        assert decision.completeness == expected.completeness


def test_more_there_than_here_is_never_complete() -> None:
    for quiet in (False, True):
        for may_fetch in (False, True):
            assert decide(3, 4, asked=True, quiet=quiet, may_fetch=may_fetch).action != Action.CLOSE
