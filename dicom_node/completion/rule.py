"""The rule of completeness: what to do about an open series, from counts and its quiet time."""

from dataclasses import dataclass
from enum import StrEnum

from storage.series import QUIET_TIME

PACS_COUNT = "pacs-count"
PACS_LIST = "pacs-list"
"""The PACS counts more instances than it lists, even when asked again; all that it lists are here."""
PACS_SILENT = "quiet-time-pacs-silent"
PACS_HAS_FEWER = "quiet-time-pacs-has-fewer"
MOST_DOUBLINGS = 6


class Action(StrEnum):
    """What to do about an open series."""

    WAIT = "WAIT"
    FETCH = "FETCH"
    CLOSE = "CLOSE"
    REFUSE = "REFUSE"


@dataclass(frozen=True)
class Decision:
    """An action. completeness: for CLOSE and REFUSE, how it was decided."""

    action: Action
    completeness: str = QUIET_TIME


@dataclass(frozen=True)
class Said:
    """What a PACS says about a series, or `silence`: why it cannot say.

    count: its number of instances. listed: their SOP Instance UIDs; None if it gave no list, or was not asked for one.
    It is asked only if the count is not below what is here.
    """

    count: int | None
    listed: frozenset[str] | None = None
    silence: str = ""

    @property
    def there(self) -> int | None:
        """How many instances it holds: what it counts, or lists if that is more."""
        return self.count if self.count is None else max(self.count, len(self.listed or ()))

    def missing(self, held: frozenset[str]) -> frozenset[str] | None:
        """Those listed that are not here; None without a list."""
        return None if self.listed is None else self.listed - held


def decide(
    here: int,
    there: int | None,
    asked: bool,
    quiet: bool,
    may_fetch: bool,
    missing: int | None = None,
    contradicted: bool = False,
    lacked: bool = False,
) -> Decision:
    """The rule.

    here: instances that the node holds. there: that the PACS counts, None if it could not say.
    asked: a PACS is configured to be asked. quiet: the series' whole quiet time is over.
    may_fetch: missing instances may be fetched, and have not been tried too often.
    missing: instances that the PACS lists and the node does not hold; None if it gave no list.
    contradicted: when it was asked before, it counted more than it listed, too.
    lacked: when it was asked before, it listed instances that are still not here.
    """
    if asked and there is not None and there == here:
        return Decision(Action.CLOSE, PACS_COUNT)
    if asked and there is not None and there > here:
        if missing == 0:
            # A number in a PACS's index may be wrong or early; what it cannot name, it cannot give.
            return Decision(Action.CLOSE, PACS_LIST) if contradicted else Decision(Action.WAIT)
        if may_fetch:
            return Decision(Action.FETCH)
        return Decision(Action.REFUSE, PACS_COUNT) if quiet else Decision(Action.WAIT)
    if not quiet:
        return Decision(Action.WAIT)
    if not asked:
        return Decision(Action.CLOSE, QUIET_TIME)
    if there is None and lacked:
        return Decision(Action.REFUSE, PACS_SILENT)  # the PACS's silence does not make the series complete
    # Fewer there than here: it is not the PACS that sent, or its index is behind. It cannot tell when all have come.
    return Decision(Action.CLOSE, PACS_SILENT if there is None else PACS_HAS_FEWER)


def next_look(due_at: float, asked: int, now: float, settle_s: float) -> float:
    """When to ask the PACS again: at growing distances, but always when the quiet time is over.

    due_at: the end of the quiet time. asked: how often it was asked. All times in Unix seconds.
    """
    wait_until = now + settle_s * 2.0 ** min(asked, MOST_DOUBLINGS)
    return min(wait_until, due_at) if due_at > now else wait_until


def missing_sentence(here: int, said: Said) -> str:
    """Why a series is refused, for a person."""
    if said.count is None:
        return (
            "The PACS listed instances of this series that are not here and could not be fetched, and did not answer "
            f"when it was asked again; {here} instances are here."
        )
    there = f"The PACS holds {said.count} instances of this series"
    if said.listed is not None and len(said.listed) != said.count:
        there = f"The PACS counts {said.count} instances of this series and lists {len(said.listed)}"
    return f"{there}; {here} instances are here and the missing ones could not be fetched."
