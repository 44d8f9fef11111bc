"""web: the pages in this process, and the accounts that may log in to them."""

import ctypes
import getpass
import os
import sys
import time
from importlib.util import find_spec
from typing import Annotated

import typer
from sqlalchemy.exc import IntegrityError

from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    files_of,
    local_text,
    note_operator,
    out,
    print_json,
    print_rows,
    settings_from,
    zone,
)
from dicom_node.cli.configure import WEB_NEEDS
from dicom_node.errors import NodeError
from dicom_node.runtime.signals import die_with_parent, is_child, stop_on_signals
from dicom_node.runtime.store_watch import watched
from storage import web_users
from storage.identity import open_store

WEB_PATIENCE_S = 5.0
"""A page gives up on a busy index after this time."""
NICE = 5
"""The receiver must not wait for a page."""
M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 128 * 1024
"""malloc.h's name for the size from which memory is mapped by itself; the size that glibc begins with."""
group = typer.Typer(help="The pages in a browser.")
user_group = typer.Typer(no_args_is_help=True, help="The accounts that may log in to the pages.")
group.add_typer(user_group, name="user")

NameArgument = Annotated[str, typer.Argument(help="Letters, digits and . _ - @")]
RoleOption = Annotated[
    list[str],
    typer.Option("--role", help="viewer, reader, operator, auditor or administrator; may be given several times."),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="web")


@group.callback(invoke_without_command=True)
def web(context: typer.Context, config: ConfigOption = None) -> None:
    """Serve the pages in this process; `dicom-node run` does so by itself if [web] names a port."""
    if context.invoked_subcommand:
        return
    die_with_parent()
    stop = stop_on_signals()
    settings = settings_from(config)
    if not settings.web.port:
        raise NodeError("name a port in [web], such as 8443")
    _need_extra()
    os.nice(NICE)
    _give_memory_back()
    from dicom_node.web.server import serve
    from dicom_node.web.viewer.decoding import LONGEST_S
    from inference.volume.decoder_pool import POOL

    POOL.longest_s = LONGEST_S
    url, files = settings.database_url, files_of(settings)
    if not is_child():
        database_of(settings).close()  # says what to do if there is none
    database = open_store(url, files, create=False, busy_timeout_s=WEB_PATIENCE_S)
    with watched(database, stop):
        serve(settings, database, files, stop, config)


def _give_memory_back() -> None:
    """Let glibc map each image by itself, so that what the viewer lets go returns to the system at once.

    glibc otherwise raises that mark as images are let go, and keeps their room in a heap for each thread: several times
    `viewer_mb`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


@user_group.command()
def add(name: NameArgument, role: RoleOption, config: ConfigOption = None) -> None:
    """Add an account. Its password is asked for, or read from standard input."""
    hashed, roles = _checked_name_and_roles(name, role)
    database = database_of(settings_from(config), create=True)
    password_hash = _new_password_hash()
    try:
        with database.transaction() as tx:
            web_users.add(tx, hashed, roles, password_hash, time.time())
            note_operator(tx, "web-user-added", account=name, roles=roles)
    except IntegrityError:
        raise NodeError(f"there is an account {name!r} already: `dicom-node web user passwd`, or `role`") from None
    out.print(f"{name} may log in as {', '.join(roles)}", markup=False)


@user_group.command()
def passwd(name: NameArgument, config: ConfigOption = None) -> None:
    """Give an account another password; its logins end."""
    database = database_of(settings_from(config))
    with database.read() as tx:
        web_users.get(tx, name)
    if web_users.is_of_provider(name):
        raise NodeError(f"{name} logs in by the identity provider and has no password here")
    password_hash = _new_password_hash()
    with database.transaction() as tx:
        account = web_users.get(tx, name)
        web_users.set_password(tx, account.user_id, password_hash, time.time())
        note_operator(tx, "web-user-password", account=name)
    out.print(f"{name} has another password, and is logged out everywhere", markup=False)


@user_group.command("role")
def set_role(name: NameArgument, role: RoleOption, config: ConfigOption = None) -> None:
    """Give an account these roles and no others."""
    _, roles = _checked_name_and_roles(name, role)
    with database_of(settings_from(config)).transaction() as tx:
        account = web_users.get(tx, name)
        web_users.set_roles(tx, account.user_id, roles)
        note_operator(tx, "web-user-roles", account=name, roles=roles, before=list(account.roles))
    out.print(f"{name} is {', '.join(roles)}", markup=False)


@user_group.command()
def remove(name: NameArgument, config: ConfigOption = None) -> None:
    """Remove an account and end its logins; what it did stays in the audit trail."""
    with database_of(settings_from(config)).transaction() as tx:
        account = web_users.get(tx, name)
        web_users.remove(tx, account.user_id)
        note_operator(tx, "web-user-removed", account=name)
    out.print(f"{name} is removed", markup=False)


@user_group.command("list")
def list_users(config: ConfigOption = None, json: JsonOption = False) -> None:
    """The accounts and their roles."""
    with database_of(settings_from(config)).read() as tx:
        found = web_users.everyone(tx)
    rows = [
        {
            "name": one.name,
            "roles": list(one.roles),
            "created_at": one.created_at,
            "password_set_at": one.password_set_at,
        }
        for one in found
    ]
    if json:
        print_json(rows)
        return
    columns = ("name", "roles", f"since ({zone()})", "password of")
    lines = ((a.name, ", ".join(a.roles), local_text(a.created_at), _password_of(a)) for a in found)
    print_rows("", columns, lines, wide=False)


def _password_of(account: web_users.Account) -> str:
    return "none" if web_users.is_of_provider(account.name) else local_text(account.password_set_at)


def _checked_name_and_roles(name: str, names: list[str]) -> tuple[str, list[str]]:
    from dicom_node.web.security.roles import NAME, Role

    if not NAME.fullmatch(name):
        raise NodeError("a name has 1 to 64 letters, digits and . _ - @, and begins with a letter or a digit")
    unknown = sorted(set(names) - {str(role) for role in Role})
    if unknown:
        raise NodeError(f"there is no role {unknown[0]!r}; there are {', '.join(Role)}")
    return name, [str(role) for role in Role if role in names]


def _new_password_hash() -> str:
    _need_extra()
    from dicom_node.web.security.passwords import Passwords

    try:
        return Passwords().hash(_new_password())
    except ValueError as error:
        raise NodeError(str(error)) from None


def _new_password() -> str:
    """Typed twice at a terminal, or the first line of standard input: never an argument, which others can see."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("password: ")
    if getpass.getpass("again: ") != password:
        raise NodeError("the two differ")
    return password


def _need_extra() -> None:
    """Raises NodeError if the pages' libraries are not installed."""
    missing = next((name for name in WEB_NEEDS if find_spec(name) is None), None)
    if missing:
        raise NodeError(f"the pages need {missing}: pip install 'dicom-node[web]'")
