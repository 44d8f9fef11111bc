"""Rows about single instances, gathered into one message for each study that one peer sends in one association.

The trail does not name associations. So a transfer ends when an association of its peer does, when nothing more has
come for a while, or when it has become long. What is gathered is bounded, and kept with the place in the trail, so
that no restart counts an instance twice or leaves one out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.forwarding import Row

MOST_OPEN = 200
LONGEST_S, MOST_INSTANCES = 3600.0, 20_000
MOST_CLASSES, MOST_SERIES = 20, 10
ENDS = frozenset({"association.released", "association.aborted"})
ClassOf = Callable[[str], str | None]


@dataclass
class Transfer:
    """Instances of one study with one outcome, from one peer. first, last: numbers of its rows. hash: of the last."""

    event: str
    kind: tuple[str, str]
    study_uid: str | None
    patient_id: str | None
    peer_ae: str | None
    address: str | None
    first: int
    began: float
    last: int = 0
    hash: str = ""
    ended: float = 0.0
    instances: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    series: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """What its rows have in common."""
        return self.kind, self.study_uid, self.patient_id, self.peer_ae, self.address

    def add(self, row: Row, times: int, class_of: ClassOf) -> None:
        """One more row. class_of: the SOP class of an instance, by its UID; asked once for each series."""
        self.last, self.hash, self.ended = row["id"], row["hash"], row["at"]
        self.instances += times
        series, uid = row["series_uid"] or "", row["sop_uid"] or ""
        known = self.series.get(series) or class_of(uid)
        if known is None or (known not in self.classes and len(self.classes) >= MOST_CLASSES):
            return
        if len(self.series) < MOST_SERIES:
            self.series[series] = known
        self.classes[known] = self.classes.get(known, 0) + times

    def is_long(self) -> bool:
        """Whether it is to be told although it may go on."""
        return self.instances >= MOST_INSTANCES or self.ended - self.began >= LONGEST_S


class Gathering:
    """The transfers under way. gather_s: one that has been quiet for this long is over, by the times of the rows."""

    def __init__(self, kept: tuple[Mapping[str, Any], ...], gather_s: float) -> None:
        made = [Transfer(**{**one, "kind": tuple(one["kind"])}) for one in kept]
        self._open = {one.key: one for one in made}  # the one that was added to last comes last
        self._gather_s = gather_s

    def kept(self) -> tuple[Mapping[str, Any], ...]:
        """What is under way, as JSON types."""
        return tuple(asdict(one) for one in self._open.values())

    def over(self, row: Row) -> Iterator[Transfer]:
        """The transfers that this row shows to be over; before it is added itself."""
        yield from self.quiet(row["at"])
        if row["event"] in ENDS:
            ended = [
                one for one in self._open.values() if (one.peer_ae, one.address) == (row["peer_ae"], row["address"])
            ]
            yield from (self._open.pop(one.key) for one in ended)

    def quiet(self, now: float) -> Iterator[Transfer]:
        """The transfers to which nothing was added for long."""
        while self._open:
            oldest = next(iter(self._open.values()))
            if abs(now - oldest.ended) < self._gather_s:
                return
            yield self._open.pop(oldest.key)

    def all(self) -> Iterator[Transfer]:
        """Everything that is under way: the node ends."""
        yield from (self._open.pop(key) for key in list(self._open))

    def add(self, row: Row, kind: tuple[str, str], times: int, class_of: ClassOf) -> Iterator[Transfer]:
        """Gather a row. Yields what has to be told for that."""
        began = Transfer(
            row["event"],
            kind,
            row["study_uid"],
            row["patient_id"],
            row["peer_ae"],
            row["address"],
            row["id"],
            row["at"],
        )
        one = self._open.pop(began.key, began)
        one.add(row, times, class_of)
        self._open[one.key] = one
        if one.is_long():
            yield self._open.pop(one.key)
        if len(self._open) > MOST_OPEN:
            yield self._open.pop(next(iter(self._open)))
