"""What a look at the installation finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How serious it is. LOOK: the node works, but not as well or as safely as it could."""

    GOOD = "good"
    LOOK = "look"
    WRONG = "WRONG"


@dataclass(frozen=True)
class Found:
    """One line of the table. part: what was looked at. says: what was found. do: what a person does about it."""

    part: str
    level: Level
    says: str
    do: str = ""


def good(part: str, says: str) -> Found:
    """Nothing to do."""
    return Found(part, Level.GOOD, says)


def look(part: str, says: str, do: str) -> Found:
    """The node works, but somebody should look after it."""
    return Found(part, Level.LOOK, says, do)


def wrong(part: str, says: str, do: str) -> Found:
    """The node does not start, or does not do its work."""
    return Found(part, Level.WRONG, says, do)


def exit_status(found: Iterable[Found]) -> int:
    """0: all is good; 1: something to look after; 2: something is wrong. What monitoring plug-ins answer, too."""
    return max((list(Level).index(one.level) for one in found), default=0)
