"""From each schema that there ever was the index comes to this one; a migration that fails leaves the former one."""

import re
import shutil
import sqlite3

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text

from storage import audit
from storage import database as module
from storage.audit_check import check
from storage.database import MIGRATIONS, Database, migrations, open_database
from tests.fixtures import index_of
from tests.storage_factory import Store

CHAIN = [one.revision for one in ScriptDirectory.from_config(migrations()).walk_revisions()][::-1]
KNOWN_TO_ADD_ONLY = re.compile(r"op\.(create_table|create_index|add_column|f)\(")


def dump(path):
    """Every table, index, trigger and row; not the order in which tables were written."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as index:
        return sorted(index.iterdump())


def step(path, revision):
    """Bring an index to one schema, in a transaction of its own."""
    database = Database(f"sqlite:///{path}")
    config = migrations()
    with database._unchecked_references(), database.transaction() as tx:
        config.attributes["connection"] = tx
        command.upgrade(config, revision)
    database.close()


@pytest.mark.sqlite
def test_an_index_that_stopped_at_every_schema_on_its_way_is_the_same_as_one_that_came_at_once(tmp_path):
    slow, fast = (index_of("0.1.0", tmp_path / f"{name}.db") for name in ("slow", "fast"))
    for revision in CHAIN[1:]:
        step(slow, revision)
    open_database(f"sqlite:///{slow}").close()
    database = open_database(f"sqlite:///{fast}")
    with database.read() as tx:
        assert audit.verify(tx) is None
        assert check(tx).problems == ()
    database.close()
    assert dump(slow) == dump(fast)


def broken_migration(tmp_path, monkeypatch):
    """One more migration than there are: it alters some of everything, and fails at its end."""
    folder = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    (folder / "versions" / "v9000_broken.py").write_text(
        f"from alembic import op\nrevision = '9000'\ndown_revision = '{CHAIN[-1]}'\nbranch_labels = depends_on = None\n"
        "def upgrade():\n"
        "    op.execute('DROP VIEW connections')\n"
        "    op.execute('CREATE TABLE another (id INTEGER)')\n"
        "    op.execute('DELETE FROM deliveries')\n"
        "    op.execute('ALTER TABLE series RENAME COLUMN quiet_s TO other')\n"
        "    op.execute('DELETE FROM nothing')\n"
    )
    monkeypatch.setattr(module, "MIGRATIONS", folder)


def test_after_a_migration_that_failed_the_former_program_goes_on(tmp_path, monkeypatch):
    with Store(tmp_path) as store:
        store.reported("PACS")
        store.database.close()
        with monkeypatch.context() as patch:
            broken_migration(tmp_path, patch)
            with pytest.raises(Exception, match="nothing"):
                open_database(store.url)
        with Store(tmp_path, store.url) as former:
            assert former.database.schema() == (CHAIN[-1], CHAIN[-1])
            assert former.states("deliveries") == ["PENDING"]
            former.receive(3, now=100)
            former.close_due(200)
            assert former.finish(former.claim(200), 201, "PACS") == 2
            with former.database.read() as tx:
                assert check(tx).problems == ()
                tx.execute(text("SELECT * FROM connections")).all()


@pytest.mark.sqlite
def test_a_migration_that_lets_the_former_program_go_on_only_adds():
    for path in sorted((MIGRATIONS / "versions").glob("v*.py")):
        source = path.read_text()
        if "works_with_previous = True" not in source:
            continue
        calls = set(re.findall(r"op\.\w+\(", source)) - {"op.get_bind("}
        assert all(KNOWN_TO_ADD_ONLY.match(call) for call in calls), path.name
        for column in re.findall(r"op\.add_column\(.*?\)\n", source, re.S):
            assert "nullable=True" in column or "server_default" in column, path.name
