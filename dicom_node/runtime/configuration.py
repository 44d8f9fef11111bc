"""What the index remembers of the node's configuration, so that the audit trail can say what changed when."""

import hashlib
import json

from sqlalchemy import Connection

from config.settings import Settings
from config.shown import all_shown, differences
from storage import audit
from storage.facts import get_fact, set_fact

DIGEST, VALUES = "configuration", "configuration.values"


def digest(settings: Settings) -> str:
    """SHA-256 hex of all settings, secrets masked: equal for two starts with the same configuration."""
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()


def keep(tx: Connection, settings: Settings, host: str = "") -> None:
    """Remember the configuration, secrets hidden. host: see `note_changed`."""
    set_fact(tx, _of(DIGEST, host), digest(settings))
    set_fact(tx, _of(VALUES, host), json.dumps(all_shown(settings), ensure_ascii=False))


def note_changed(tx: Connection, settings: Settings, now: float, host: str = "") -> None:
    """An audit row of its own if the node starts with another configuration than the last time.

    host: which of the hosts that share the index, each with its own configuration; empty if there is one.
    """
    before, former = get_fact(tx, _of(DIGEST, host)), json.loads(get_fact(tx, _of(VALUES, host)) or "{}")
    if before == digest(settings) and former:
        return
    keep(tx, settings, host)
    if before in (None, digest(settings)):
        return
    detail = {
        "before": before,
        "configuration": digest(settings),
        "while": "the node was stopped",
        **({"host": host} if host else {}),
        "changes": differences(former, all_shown(settings)) if former else [],
    }
    audit.append(tx, now, "node.configuration-changed", outcome="CHANGED", detail=detail)


def _of(name: str, host: str) -> str:
    return f"{name} of {host}" if host else name
