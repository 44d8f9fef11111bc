"""Which earlier results of its series a new one replaces: all, unless several models report."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, true

from storage.models import results


@dataclass(frozen=True)
class Replaces:
    """only: the results of this model alone.  but: all, except those of these models. By name; empty: all."""

    only: str = ""
    but: frozenset[str] = frozenset()

    def condition(self) -> ColumnElement[bool]:
        """The rows of `results` that are replaced, among those of the series."""
        if self.only:
            return results.c.model_name == self.only
        return results.c.model_name.not_in(sorted(self.but)) if self.but else true()


ALL_BEFORE = Replaces()
