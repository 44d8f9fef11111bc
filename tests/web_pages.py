"""The pages on a real socket, served by uvicorn in a thread of the test, with a client that fills in forms."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from config.settings import Settings, StorageSettings, WebSettings
from config.values import DatabaseUrl
from dicom_node.web.security.passwords import Passwords
from dicom_node.web.server import serve
from storage import web_users
from storage.database import Database
from tests.programs import free_port, listening, wait_for
from tests.storage_factory import Store

PASSWORD = "correct horse battery"


@cache
def password_hash() -> str:
    """The hash of PASSWORD, made once."""
    return Passwords().hash(PASSWORD)


class Visitor(httpx.Client):
    """A browser without scripts: keeps cookies, follows nothing by itself, sends a form with the page's token."""

    def __init__(self, port: int, scheme: str = "http", **options: Any) -> None:
        super().__init__(base_url=f"{scheme}://127.0.0.1:{port}", timeout=30, **options)

    def token(self, page: str = "/") -> str:
        """The form token of a page."""
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', self.get(page).text)
        assert found, page
        return found[1]

    def fill(self, path: str, page: str = "/", **fields: Any) -> httpx.Response:
        """Send a form of a page."""
        return self.post(path, data={"csrf": self.token(page), **fields})

    def log_in(self, name: str, password: str = PASSWORD) -> httpx.Response:
        """Log in."""
        return self.fill("/login", "/login", name=name, password=password)


@dataclass
class Pages:
    """The pages of one store. port: where they are."""

    store: Store
    settings: Settings
    port: int
    visitors: list[Visitor] = field(default_factory=list)

    def add_user(self, name: str, *roles: str) -> None:
        """An account with PASSWORD."""
        with self.store.database.transaction() as tx:
            web_users.add(tx, name, roles, password_hash(), time.time())

    def visitor(self, **options: Any) -> Visitor:
        """A new browser, logged in nowhere."""
        self.visitors.append(Visitor(self.port, **options))
        return self.visitors[-1]

    def logged_in(self, *roles: str) -> Visitor:
        """A new browser, logged in as an account with these roles, which is made if there is none."""
        name = "-".join(roles)
        with self.store.database.read() as tx:
            known = web_users.find(tx, name) is not None
        if not known:
            self.add_user(name, *roles)
        visitor = self.visitor()
        assert visitor.log_in(name).status_code == 303
        return visitor

    def audit(self, event: str) -> list[dict[str, Any]]:
        """The audit rows of an event, oldest first."""
        return self.store.rows("SELECT * FROM audit WHERE event = :event ORDER BY id", event=event)


@contextmanager
def serving(
    folder: Path, config_file: Path | None = None, *, web: dict[str, Any] | None = None, url: str = "", **sections: Any
) -> Iterator[Pages]:
    """The pages of a store in this folder. web: settings of [web]; sections: other ones. url: of an index that is
    there already."""
    given = dict(web or {})
    store, port = Store(folder, url), given.pop("port", 0) or free_port()
    settings = Settings(
        data_dir=folder,
        storage=StorageSettings(database_url=DatabaseUrl(store.url), low_disk_mb=1),
        web=WebSettings(port=port, **given),
        **sections,
    )
    stop, database = threading.Event(), Database(store.url, busy_timeout_s=5.0)
    server = threading.Thread(target=serve, args=(settings, database, store.files, stop, config_file))
    server.start()
    pages = Pages(store, settings, port)
    try:
        wait_for(lambda: listening(port), 20, "the pages listen")
        yield pages
    finally:
        for visitor in pages.visitors:
            visitor.close()
        stop.set()
        server.join(20)
        assert not server.is_alive()
        store.database.close()
