"""Kinds of models: the plug-ins that are installed, by the entry points of the group `dicom_node.models`.

A plug-in of this package runs in the node's own processes, and may read its own card. All others are a third party's:
nothing of theirs is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from inference.errors import ModelError

if TYPE_CHECKING:
    from inference.models.cards import Card

GROUP = "dicom_node.models"
OWN = "dicom-node"


@dataclass(frozen=True)
class Kind:
    """One installed kind of model.

    entry: "module:object" of its plug.  package, version: that it is from.  own: it is part of this program.
    """

    name: str
    entry: str
    package: str
    version: str
    own: bool


@cache
def kinds() -> Mapping[str, Kind]:
    """All installed kinds by name. If two packages name one, ours wins."""
    found: dict[str, Kind] = {}
    for entry in entry_points(group=GROUP):
        kind = _kind(entry)
        if entry.name not in found or kind.own:
            found[entry.name] = kind
    return found


def find_kind(name: str) -> Kind:
    """A kind by name. Raises ModelError if no installed package has it."""
    try:
        return kinds()[name]
    except KeyError:
        known = ", ".join(sorted(kinds())) or "none: install this package again"
        raise ModelError(f"no plug-in of kind {name} is installed; there are {known}") from None


def plug_of(kind: Kind) -> Any:
    """The plug of a kind of this program: an `inference.plug.Model`. Raises ModelError if it is a third party's."""
    if not kind.own:
        raise ModelError(f"kind {kind.name} is of package {kind.package}: it runs in a process of its own")
    return _entry(kind.name, kind.entry).load()


def card_type(table: Mapping[str, Any], where: str) -> "type[Card]":
    """The type of the card that a table describes.

    where: file of the table, for messages.  Raises ModelError for a kind that is not installed.
    """
    from inference.models.cards import Card

    name = table.get("kind", "")
    try:
        kind = find_kind(name) if name else kind_of_former_cards()
    except ModelError as error:
        raise ModelError(f"{where}.kind: {error}") from None
    found: type[Card] = getattr(plug_of(kind), "card_type", Card) if kind.own else Card
    return found


def calibrates(kind: Kind) -> bool:
    """True if models of this kind report what `Card.calibrated` makes of their output."""
    return kind.own and bool(getattr(plug_of(kind), "calibrates", False))


@cache
def kind_of_former_cards() -> Kind:
    """The kind of the cards that name none: they are older than kinds."""
    for kind in kinds().values():
        if kind.own and getattr(plug_of(kind), "reads_cards_without_kind", False):
            return kind
    raise ModelError("the card names no kind, and no installed kind reads such cards: install this package again")


def _kind(entry: EntryPoint) -> Kind:
    distribution = entry.dist
    package, version = (distribution.name, distribution.version) if distribution else ("", "")
    return Kind(entry.name, entry.value, package, version, package.replace("_", "-") == OWN)


def _entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)
