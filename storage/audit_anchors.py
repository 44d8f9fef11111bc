"""Heads of the trail that were noted outside: in a list, or in a receiver's log of audit messages.

A chain of hashes shows what was altered inside. Only a witness outside shows that its end was cut off, or that all of
it was written anew. Each audit message names a row by number and hash, so each line of a receiver's log is a witness.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from sqlalchemy import Connection, select

from storage.models import audit as rows

HEAD = re.compile(r"(?<![0-9A-Za-z])(\d{1,18}):([0-9a-f]{64})(?![0-9A-Za-z])")
AT_ONCE = 500
MOST_TOLD = 5
Anchors = Mapping[int, str]


def read_anchors(lines: Iterable[str]) -> tuple[dict[int, str], list[str]]:
    """Every "number:hash" in some text, and what is wrong with them among themselves."""
    found: dict[int, str] = {}
    problems = []
    for number, digest in (match for line in lines for match in HEAD.findall(line)):
        if found.setdefault(int(number), digest) != digest:
            problems.append(f"row {number} was noted with two hashes: the trail was written anew in between")
    return found, problems


class Witnesses:
    """Compares rows with what was noted of them."""

    def __init__(self, anchors: Anchors) -> None:
        self._left = dict(anchors)
        self._other: list[int] = []

    def see(self, number: int, digest: str) -> None:
        """A row of the trail."""
        noted = self._left.pop(number, digest)
        if noted != digest:
            self._other.append(number)

    def ask_index(self, tx: Connection) -> None:
        """See the rows of the index that were noted."""
        wanted = iter(sorted(self._left))
        while some := list(islice(wanted, AT_ONCE)):
            for number, digest in tx.execute(select(rows.c.id, rows.c.hash).where(rows.c.id.in_(some))).all():
                self.see(number, digest)

    def problems(self) -> Iterator[str]:
        """What the rows that were seen do not bear out; a few of each kind."""
        yield from _first(self._other, "is not the one that was noted: the trail was written anew")
        yield from _first(
            sorted(self._left), "was noted and is not there: rows were cut off the end, or the index is older"
        )


def _first(numbers: list[int], what: str) -> Iterator[str]:
    yield from (f"row {number} {what}" for number in numbers[:MOST_TOLD])
    if len(numbers) > MOST_TOLD:
        yield f"and {len(numbers) - MOST_TOLD} more such rows"
