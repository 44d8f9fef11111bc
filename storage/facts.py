"""Facts about the database itself: one value for each name."""

from sqlalchemy import Connection, delete, insert, inspect, select

from storage.models import properties


def has_facts(tx: Connection) -> bool:
    """Whether the database has a place for facts: an index has, an empty database has not."""
    return inspect(tx).has_table(properties.name)


def get_fact(tx: Connection, name: str) -> str | None:
    """The value of a name; None if there is none."""
    found: str | None = tx.scalar(select(properties.c.value).where(properties.c.name == name))
    return found


def set_fact(tx: Connection, name: str, value: str) -> None:
    """Give a name its value, in place of the one that it had."""
    tx.execute(delete(properties).where(properties.c.name == name))
    tx.execute(insert(properties).values(name=name, value=value))
