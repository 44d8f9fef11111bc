"""A stage of a model that each slice goes through alone, so that it can be done while the series still arrives."""

from typing import Protocol, runtime_checkable

from inference.plug import Output
from inference.volume.arriving import Arrived
from inference.volume.ct_volume import CTVolume


class Ahead(Protocol):
    """What a model has computed of one series that may not be whole. It is dropped with the series.

    nbytes: memory that it takes.
    """

    @property
    def nbytes(self) -> int: ...

    def go_on(self, arrived: Arrived, *, settled: bool) -> bool:
        """Compute a little more: what takes some tenths of a second. Returns False if there is nothing to compute.

        arrived: the slices that are there.  settled: these may be all, because no other one has come for a while or a
            PACS has no more.
        """


@runtime_checkable
class WorksAhead(Protocol):
    """A loaded model with such a stage. The node asks for it only if the site wants that."""

    def ahead(self, max_bytes: int) -> Ahead | None:
        """Begin with a series. max_bytes: most memory to keep.  None: this model has no such stage on its device."""

    def analyse_with(self, volume: CTVolume, ahead: Ahead) -> Output:
        """What `analyse` gives, bit for bit, in less time.

        ahead: from this model's own `ahead`. Whatever was guessed when it was computed, only what holds for this volume
        is used of it. Raises UnsuitableSeries as `analyse` does.
        """
