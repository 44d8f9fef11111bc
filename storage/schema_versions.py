"""Which versions of the program may work on an index at the same time.

A migration says `works_with_previous = True` if the program before it can go on working with the schema after it: it
adds what that program need not know (tables, columns with a default, indexes) and changes the meaning of nothing. The
index remembers the oldest schema whose program may still work on it. So hosts can be brought to a new version one after
the other; any other change of the schema needs all of them to be stopped.
"""

import functools
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from storage import hosts
from storage.errors import DatabaseOutdated
from storage.facts import get_fact, set_fact
from storage.models import hosts as hosts_table
from storage.models import properties

OLDEST = "schema works with"


def script_of(config: Config) -> ScriptDirectory:
    """The migrations of a configuration. They are read once: that takes longer than most of what a command does."""
    location = str(config.get_main_option("script_location"))
    return _read(location, (Path(location) / "versions").stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(location: str, changed_ns: int) -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", location.replace("%", "%%"))
    return ScriptDirectory.from_config(config)


def works_here(tx: Connection, held: str | None, config: Config) -> bool:
    """Whether a program with these migrations may work on an index whose schema is `held`: its own, or a later one
    that still allows it."""
    versions = _versions(config)
    if held == versions[0]:
        return True
    if held is None or held in versions or not inspect(tx).has_table(properties.name):
        return False
    return get_fact(tx, OLDEST) in versions


def note_oldest(tx: Connection, config: Config) -> None:
    """Remember which programs may work with the schema that these migrations make."""
    oldest = oldest_that_works(config)
    if get_fact(tx, OLDEST) != oldest:
        set_fact(tx, OLDEST, oldest)


def oldest_that_works(config: Config) -> str:
    """The oldest schema whose program may work with the newest one."""
    script = script_of(config)
    oldest = script.get_revision(_versions(config)[0])
    while getattr(oldest.module, "works_with_previous", False) and oldest.down_revision:
        oldest = script.get_revision(str(oldest.down_revision))
    return str(oldest.revision)


def refuse_under_hosts(tx: Connection, held: str | None, now: float, config: Config) -> None:
    """Raises DatabaseOutdated if hosts are at work whose program could not go on after the migration from `held`."""
    versions = _versions(config)
    if held not in versions[1:] or not inspect(tx).has_table(hosts_table.name):
        return
    if versions.index(held) <= versions.index(oldest_that_works(config)):
        return
    alive = [f"{host.name} ({host.version})" for host in hosts.all_of(tx) if host.lives(now)]
    if alive:
        raise DatabaseOutdated(
            f"this version changes the schema of the index in a way that the running hosts do not know: "
            f"{', '.join(alive)}. Stop the node on all of them first"
        )


def _versions(config: Config) -> list[str]:
    """All schemas that these migrations know, the newest first."""
    return [script.revision for script in script_of(config).walk_revisions()]
