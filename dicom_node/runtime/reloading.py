"""A new configuration for a running node: what it changes, which changes need a restart, and what the children read.

The children read a copy of the configuration and not the site's file: a child that dies and starts again must not
find a file that somebody is editing. The copy changes only once the new configuration has been found to be good.
"""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Secret, SecretStr

from config.load import Mistake
from config.settings import ENV_PREFIX, Settings
from config.shown import flat

Model = TypeVar("Model", bound=BaseModel)
Read = Callable[[Path | None], tuple[Settings | None, list[Mistake]]]

# What a node cannot change while it runs: its data, its ports, and which processes it has.
NEEDS_RESTART = (
    "data_dir",
    "storage.database_url",
    "storage.bucket",
    "storage.pseudonym_key",
    "receiver.host",
    "receiver.port",
    "receiver.plain",
    "receiver.tls_port",
    "receiver.processes",
    "metrics.host",
    "metrics.port",
    "web.host",
    "web.port",
    "worker.devices",
    "audit.syslog.host",
    "cluster.address",
)


@dataclass(frozen=True)
class Change:
    """What a new configuration changes. applied, waiting: keys; the latter need a restart.

    settings: the new ones, but for what needs a restart.
    kept: environment variables with which the children keep the values that need one.
    """

    settings: Settings
    applied: tuple[str, ...]
    waiting: tuple[str, ...]
    kept: Mapping[str, str] = field(default_factory=dict)


def compare(old: Settings, new: Settings) -> Change:
    """What changes from one configuration to another."""
    before, after = dict(flat(old)), dict(flat(new))
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    waiting = tuple(key for key in changed if key in NEEDS_RESTART)
    # The devices are in the children's command lines.
    kept = {_variable(key): _text(before[key]) for key in waiting if key != "worker.devices"}
    effective = new
    for key in waiting:
        effective = _with(effective, key, before[key])
    return Change(effective, tuple(key for key in changed if key not in NEEDS_RESTART), waiting, kept)


def _with(settings: Model, key: str, value: object) -> Model:
    section, _, rest = key.partition(".")
    inner = getattr(settings, section)
    return settings.model_copy(update={section: _with(inner, rest, value) if rest else value})


def _variable(key: str) -> str:
    return ENV_PREFIX + key.upper().replace(".", "__")


def _text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, Secret | SecretStr) else str(value)


class Copy:
    """The copy of the configuration file that the children read. It may hold secrets: only its owner may."""

    def __init__(self, source: Path, data_dir: Path) -> None:
        self.source = source
        self.path = data_dir / f"node-{socket.gethostname()}.toml"
        self._former: bytes | None = None
        self.take(source.read_bytes())

    def take(self, content: bytes) -> None:
        """Put this in its place, all or nothing; `give_back` undoes it."""
        self._former = self.path.read_bytes() if self.path.exists() else content
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        new.replace(self.path)

    def give_back(self) -> None:
        """The content before the last `take`."""
        if self._former is not None:
            self.take(self._former)

    def remove(self) -> None:
        """The node has ended."""
        self.path.unlink(missing_ok=True)
