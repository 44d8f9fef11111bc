"""index move: SQLite to PostgreSQL and back, row by row, interrupted and resumed, with the audit trail."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import DatabaseError
from typer.testing import CliRunner

from dicom_node.cli.app import app
from dicom_node.errors import NodeError
from dicom_node.runtime.node_lock import only_node
from storage import audit, moving, pauses
from storage.backup import back_up
from storage.database import Database
from storage.errors import MoveFailed, StoreMismatch
from storage.facts import set_fact
from storage.identity import claim, identity_of, look, open_for_adoption, open_store
from storage.models import Base, messages, properties
from storage.moved import MOVING
from storage.moving import Mover, open_to_move
from storage.reconcile import reconcile
from tests.postgresql import postgresql_server
from tests.storage_factory import INDEX, Store, check_listings


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server for this module."""
    with postgresql_server() as url:
        yield url


def empty_database(server: str, name: str) -> str:
    """The URL of a new database on the server."""
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A node's data folder with results, as a stopped node leaves it."""
    (tmp_path / "data").mkdir()
    with Store(tmp_path / "data") as made:
        claim(made.database, made.files)
        made.reported("pacs", "ris")
        made.receive(4, now=90.0, series_uid="1.2.4")
        with made.database.transaction() as tx:
            pauses.pause(tx, pauses.Pausable.SOURCE, "Zürich", "eve", 91.0)
            tx.execute(text("INSERT INTO web_users VALUES (7, 'eve', 'viewer', 'h', 1.5, 0.1)"))
            message = {
                "delivery_id": 1,
                "kind": "hl7",
                "key": "k",
                "content_type": "t",
                "content": b"\0\xff'",
                "nonce": None,
            }
            tx.execute(insert(messages).values(**message, sha256="s", made_at=1 / 3))
        yield made


def begun(store: Store, folder: Path) -> str:
    """A new index as a move has it when it has just begun. To copy an empty one costs a tenth of making it."""
    with store.database.read() as tx:
        identity = identity_of(tx)
    folder.mkdir()
    with Store(folder) as new, new.database.transaction() as tx:
        assert identity is not None
        set_fact(tx, MOVING, identity.store)
    return f"sqlite:///{folder}/index.sqlite"


def command(folder: Path, url: str, *arguments: str) -> Any:
    """What a command says that must succeed. folder, url: the node's."""
    environment = {"DICOM_NODE_DATA_DIR": str(folder), "DICOM_NODE_STORAGE__DATABASE_URL": url}
    done = CliRunner().invoke(app, [*arguments, "--json"], env=environment)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def move(store: Store, to: str) -> Any:
    return command(store.folder, store.url, "index", "move", "--to", to)


def contents(url: str) -> dict[str, list[Any]]:
    """Every row of every table but the facts about the database itself."""
    with Database(url).read() as tx:
        return {
            table.name: sorted((tuple(row) for row in tx.execute(select(table))), key=repr)
            for table in Base.metadata.sorted_tables
            if table is not properties
        }


def without_moves(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**rows, "audit": [row for row in rows["audit"] if row[2] not in ("index.moved", "backup.created")]}


def test_an_index_goes_to_postgresql_is_backed_up_there_and_comes_back(
    store: Store, server: str, tmp_path: Path
) -> None:
    before = contents(store.url)
    url = empty_database(server, "moved")
    moved = move(store, url)
    assert without_moves(contents(url)) == before and len(moved["digests"]) == len(before)

    with pytest.raises(StoreMismatch, match="was moved to postgresql"):
        open_store(store.url, store.files)
    with Store(store.folder, url) as there:
        there.database = open_store(url, there.files)
        claim(there.database, there.files)
        assert [str(one) for one in there.receive(4, 5, now=95.0, series_uid="1.2.4")] == ["DUPLICATE", "NEW"]
        there.close_due(500.0)
        job = there.claim(500.0)
        assert job is not None and there.finish(job, 501.0, "pacs")
        with there.database.read() as tx:
            assert audit.verify(tx) is None
            check_listings(tx)
        assert there.rows("SELECT version FROM views_version"), "the views are there"
        with pytest.raises(DatabaseError, match="only grows"), there.database.transaction() as tx:
            tx.execute(text("DELETE FROM audit"))

    after = contents(url)
    backed_up_and_restored(store.folder, url, empty_database(server, "restored"), tmp_path / "restored")
    back = f"sqlite:///{tmp_path}/back.db"
    move(Store(store.folder, url), back)
    assert without_moves(contents(back)) == without_moves(after)
    with open_store(back, store.files).read() as tx:
        assert audit.verify(tx) is None
        events = list(tx.scalars(text("SELECT event FROM audit WHERE event = 'index.moved'")))
        assert events == ["index.moved", "index.moved"]
    with pytest.raises(StoreMismatch, match="was moved to"):
        open_store(url, store.files)


def backed_up_and_restored(folder: Path, url: str, new_url: str, new: Path) -> None:
    made = command(folder, url, "backup", "create", str(new.parent / "backups"))
    assert made["engine"] == "postgresql" and command(folder, url, "backup", "verify", made["folder"])["problems"] == []
    with pytest.raises(NodeError, match="is not empty"):
        command(folder, url, "backup", "restore", made["folder"], "--to", str(new))
    command(folder, new_url, "backup", "restore", made["folder"], "--to", str(new))
    old, restored = contents(url), contents(new_url)
    for table in ("instances", "results", "result_objects", "deliveries", "messages", "listings", "tallies"):
        assert restored[table] == old[table], table
    point, rows = made["head"][0], restored["audit"]
    assert [row for row in rows if row[0] <= point] == [row for row in old["audit"] if row[0] <= point]
    with Store(new, new_url) as there:
        there.database = open_store(new_url, there.files)  # the start of a node
        claim(there.database, there.files)
        assert reconcile(there.database, there.files, 600.0)["files_missing"] == 0
        assert [str(one) for one in there.receive(5, 6, now=96.0, series_uid="1.2.4")] == ["DUPLICATE", "NEW"]
        with there.database.read() as tx:
            assert audit.verify(tx) is None


class Killed(BaseException):
    """As SIGKILL ends a move: nothing after it happens."""


def moved(store: Store, old: str, new: str, report: moving.Report = lambda table, rows: None) -> None:
    """What the command does."""
    mover = Mover(open_to_move(old, store.files), Database(new), report)
    mover.begin()
    mover.copy()
    mover.finish(mover.compare(), 1.0, "test")


def copied(store: Store, to: Path) -> str:
    back_up(store.folder / INDEX, to)
    return f"sqlite:///{to}"


def dies_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """The process dies before its n-th transaction."""
    transaction, count = Database.transaction, iter(range(1, number))

    def counted(self: Database) -> Any:
        if next(count, None) is None:
            raise Killed
        return transaction(self)

    patch.setattr(Database, "transaction", counted)


def test_a_move_that_was_killed_goes_on_and_no_node_works_on_half_an_index(store: Store, tmp_path: Path) -> None:
    before = contents(store.url)
    counting: list[str] = []
    arrived = begun(store, tmp_path / "arrived")
    with pytest.MonkeyPatch.context() as patch:
        transaction = Database.transaction
        patch.setattr(Database, "transaction", lambda self: (counting.append("one"), transaction(self))[1])
        moved(store, copied(store, tmp_path / "counted.db"), arrived)
    for number in (1, 2, len(counting) // 2, len(counting) - 1, len(counting)):
        old = copied(store, tmp_path / f"old-{number}.db")
        new = begun(store, tmp_path / f"new-{number}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            dies_at(number, patch)
            moved(store, old, new)
        assert "was not finished" in str(look(new, store.files)[2])
        with pytest.raises(StoreMismatch, match="was not finished"):
            open_for_adoption(new, store.files, merge=True)
        moved(store, old, new)
        assert without_moves(contents(new)) == before
        assert look(new, store.files)[2] is None and "was moved to" in str(look(old, store.files)[2])


def test_what_was_copied_is_not_copied_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "AT_ONCE", 5)
    new = Database(begun(store, tmp_path / "new"))
    mover = Mover(open_to_move(store.url, store.files), new)
    mover.begin()
    mover.copy()
    with new.transaction() as tx:
        tx.exec_driver_sql("DROP TRIGGER audit_no_delete")
        tx.exec_driver_sql("DELETE FROM audit WHERE id > 5")
    told: list[tuple[str, int]] = []
    again = Mover(open_to_move(store.url, store.files), new, lambda table, rows: told.append((table, rows)))
    again.begin()
    again.copy()
    assert next(rows for table, rows in told if table == "audit") == 5
    assert again.compare().broken == ""


def test_a_row_that_differs_is_named_and_the_old_index_stays_in_use(store: Store, tmp_path: Path) -> None:
    new = Database(begun(store, tmp_path / "new"))
    mover = Mover(open_to_move(store.url, store.files), new)
    mover.begin()
    mover.copy()
    assert mover.compare().broken == ""
    for table, change in (("result_objects", "DELETE FROM {}"), ("instances", "UPDATE {} SET size = 1 WHERE id = 1")):
        with new.transaction() as tx:
            tx.exec_driver_sql(change.format(table))
        with pytest.raises(MoveFailed, match=f"row 1 of table {table}"):
            mover.compare()
    assert look(store.url, store.files)[2] is None


def test_what_another_command_writes_during_a_move_is_not_left_behind(store: Store, tmp_path: Path) -> None:
    new = Database(begun(store, tmp_path / "new"))
    mover = Mover(open_to_move(store.url, store.files), new)
    mover.begin()
    mover.copy()
    compared = mover.compare()
    with store.database.transaction() as tx:
        pauses.pause(tx, pauses.Pausable.DESTINATION, "pacs", "eve", 95.0)
    with pytest.raises(MoveFailed, match="was written to while it was moved"):
        mover.finish(compared, 96.0, "test")
    assert look(store.url, store.files)[2] is None, "the old index is in use"
    mover.copy()
    assert mover.compare().head[0] == compared.head[0] + 1
    with new.read() as tx:
        assert pauses.is_paused(tx, pauses.Pausable.DESTINATION, "pacs")

    store.receive(5, now=97.0, series_uid="1.2.4")  # a node that worked between two runs of the command
    mover.begin()
    mover.copy()
    with pytest.raises(MoveFailed, match=r"not the same in both.*: empty .*index\.sqlite, and begin the move anew"):
        mover.compare()


def test_a_database_that_holds_something_else_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    with Store(tmp_path / "another") as another:
        claim(another.database, another.files)
        before = contents(another.url)
        with pytest.raises(MoveFailed, match="is not empty"):
            move(store, another.url)
        assert contents(another.url) == before
    done = begun(store, tmp_path / "new")
    move(store, done)
    with pytest.raises(MoveFailed, match=r"was moved to .* already"):
        move(store, done)
    with pytest.raises(MoveFailed, match="was moved to"):
        move(store, f"sqlite:///{tmp_path}/third.db")


def test_an_index_is_not_moved_under_a_running_node(store: Store, tmp_path: Path) -> None:
    with only_node(store.folder, threading.Event()), pytest.raises(NodeError, match="another node runs"):
        move(store, f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()
