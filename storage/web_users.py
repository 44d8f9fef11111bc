"""Accounts of the pages and their logins. Passwords come here only as hashes, tokens of logins only as digests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from storage.errors import NotFound
from storage.models import web_sessions, web_users

PROVIDER_PREFIX = "sso:"
"""Begins the name of each account of an identity provider. No local account's name has a colon, so neither can be the
other."""


@dataclass(frozen=True)
class Account:
    """One account. roles: names, as `dicom_node.web.security.roles` knows them."""

    user_id: int
    name: str
    roles: tuple[str, ...]
    password_hash: str
    password_set_at: float
    created_at: float


def is_of_provider(name: str) -> bool:
    """Whether an account is an identity provider's, so that no password opens it."""
    return name.startswith(PROVIDER_PREFIX)


def add(tx: Connection, name: str, roles: Iterable[str], password_hash: str, now: float) -> int:
    """A new account. Returns its number. Raises sqlalchemy's IntegrityError if the name is taken."""
    values = {
        "name": name,
        "roles": " ".join(roles),
        "password_hash": password_hash,
        "password_set_at": now,
        "created_at": now,
    }
    return int(tx.execute(insert(web_users).values(values).returning(web_users.c.id)).scalar_one())


def find(tx: Connection, name: str) -> Account | None:
    """The account of this name."""
    row = tx.execute(select(web_users).where(web_users.c.name == name)).mappings().first()
    return None if row is None else _account(row)


def get(tx: Connection, name: str) -> Account:
    """The account of this name. Raises NotFound."""
    found = find(tx, name)
    if found is None:
        raise NotFound(f"there is no account {name!r}")
    return found


def everyone(tx: Connection) -> Sequence[Account]:
    """All accounts, by name."""
    return [_account(row) for row in tx.execute(select(web_users).order_by(web_users.c.name)).mappings()]


def set_password(tx: Connection, user_id: int, password_hash: str, now: float) -> None:
    """Give an account another password; all its logins end."""
    values = {"password_hash": password_hash, "password_set_at": now}
    tx.execute(update(web_users).where(web_users.c.id == user_id).values(values))
    end_logins_of(tx, user_id)


def set_roles(tx: Connection, user_id: int, roles: Iterable[str]) -> None:
    """Give an account other roles; they hold from its next request on."""
    tx.execute(update(web_users).where(web_users.c.id == user_id).values(roles=" ".join(roles)))


def remove(tx: Connection, user_id: int) -> None:
    """Remove an account and end its logins. What it did stays in the audit trail."""
    end_logins_of(tx, user_id)
    tx.execute(delete(web_users).where(web_users.c.id == user_id))


def begin_login(tx: Connection, token_sha256: str, user_id: int, address: str, now: float, expires_at: float) -> None:
    """Somebody has logged in. Logins that are over are forgotten."""
    tx.execute(delete(web_sessions).where(web_sessions.c.expires_at <= now))
    values = {"token_sha256": token_sha256, "user_pk": user_id, "address": address}
    tx.execute(insert(web_sessions).values(values | {"created_at": now, "expires_at": expires_at}))


def who_is(tx: Connection, token_sha256: str, now: float) -> Account | None:
    """Whose login this is; None if there is none, or if it is over."""
    joined = web_users.join(web_sessions, web_sessions.c.user_pk == web_users.c.id)
    held = (web_sessions.c.token_sha256 == token_sha256) & (web_sessions.c.expires_at > now)
    row = tx.execute(select(web_users).select_from(joined).where(held)).mappings().first()
    return None if row is None else _account(row)


def end_login(tx: Connection, token_sha256: str) -> None:
    """Somebody has logged out."""
    tx.execute(delete(web_sessions).where(web_sessions.c.token_sha256 == token_sha256))


def end_logins_of(tx: Connection, user_id: int) -> None:
    """End all logins of an account."""
    tx.execute(delete(web_sessions).where(web_sessions.c.user_pk == user_id))


def _account(row: RowMapping) -> Account:
    return Account(
        row["id"],
        row["name"],
        tuple(row["roles"].split()),
        row["password_hash"],
        row["password_set_at"],
        row["created_at"],
    )
