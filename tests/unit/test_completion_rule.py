"""The rule of completeness, case by case."""

import pytest

from dicom_node.completion.rule import (
    PACS_COUNT,
    PACS_HAS_FEWER,
    PACS_LIST,
    PACS_SILENT,
    Action,
    Decision,
    Said,
    decide,
    missing_sentence,
    next_look,
)
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


def test_a_count_above_the_list_is_asked_about_again_and_then_the_list_counts() -> None:
    known = {"asked": True, "quiet": True, "may_fetch": True}
    assert decide(40, 41, **known, missing=0).action == Action.WAIT
    assert decide(40, 41, **known, missing=0, contradicted=True) == Decision(Action.CLOSE, PACS_LIST)
    assert decide(38, 41, **known, missing=2, contradicted=True).action == Action.FETCH
    assert decide(38, 41, asked=True, quiet=True, may_fetch=False, missing=2).action == Action.REFUSE


def test_a_silence_does_not_make_complete_what_lacked_instances_before() -> None:
    decision = decide(3, None, asked=True, quiet=True, may_fetch=True, lacked=True)
    assert decision == Decision(Action.REFUSE, PACS_SILENT)
    assert decide(3, None, asked=True, quiet=False, may_fetch=True, lacked=True).action == Action.WAIT
    assert "did not answer" in missing_sentence(3, Said(None, silence="no connection"))


def test_the_sentence_says_what_the_pacs_counts_and_what_it_lists() -> None:
    listed = frozenset(str(number) for number in range(40))
    assert "holds 41 instances" in missing_sentence(38, Said(41, listed | {"40"}))
    sentence = missing_sentence(38, Said(41, listed))
    assert "counts 41" in sentence
    assert "lists 40" in sentence
    assert "38 instances are here" in sentence


def test_questions_come_at_growing_distances_and_always_at_the_end_of_the_quiet_time() -> None:
    waits = [next_look(1e9, asked, 0.0, 1.0) for asked in range(10)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]
    assert next_look(30.0, 5, 0.0, 1.0) == 30.0
    assert next_look(30.0, 5, 31.0, 1.0) == 63.0
