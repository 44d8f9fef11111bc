"""Pausing a source or a destination, and resuming it, from the command line or the pages."""

from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.errors import NodeError
from storage import audit, pauses
from storage.pauses import Pausable


def set_paused(
    tx: Connection,
    settings: Settings,
    peer: tuple[Pausable, str],
    by: str,
    now: float,
    *,
    paused: bool,
    where: audit.Peer = audit.NOBODY,
) -> str:
    """Pause a source or a destination, or resume it, with its audit row. Returns what follows, in a sentence.

    peer: what kind, and its AE title or name.  by, where: the person who has it done.
    Raises NodeError if the settings name no such peer, IllegalMove if nothing would change.
    """
    kind, name = peer
    _refuse_unknown(settings, kind, name)
    (pauses.pause if paused else pauses.resume)(tx, kind, name, by, now, where)
    if kind is Pausable.SOURCE:
        does = "is refused until it is resumed; it keeps its images" if paused else "may send again"
    else:
        does = "gets nothing until it is resumed; its results wait" if paused else "gets what has waited for it"
    return f"The {kind} {name} {does}."


def _refuse_unknown(settings: Settings, kind: Pausable, name: str) -> None:
    if kind is Pausable.DESTINATION:
        known = [one.name for one in settings.destinations]
    else:
        known = [one.ae_title for one in settings.sources]
    if name not in known:
        raise NodeError(f"there is no {kind} {name!r}; there are: {', '.join(known) or 'none'}")
