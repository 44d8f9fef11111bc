"""An index of an earlier version, with its data, becomes one of this version; or stays exactly as it was."""

import configparser
import hashlib
import re
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from config.coding import FORMER_FINDING, MILLILITRE, VOLUME
from storage import audit, series
from storage import database as module
from storage.audit_check import check
from storage.coded import contents_of
from storage.database import MIGRATIONS, VIEWS, migrations, open_database
from storage.errors import DatabaseTooNew, StorageError
from storage.models import Base
from storage.status import status
from tests.fixtures import files_of, index_of

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "views.md"
# Released migrations are frozen: what they did to the indexes of sites, they did. A change is a new migration.
# By the version that brought them.
FROZEN = {
    "0.1.0": {
        "v0001_first.py": "89812829cb8918cc79b72295da5fb11e1e368c2e0964a3cd1ba16b2a74caa9a9",
    },
    "0.2.0": {
        "v0002_instances_digest.py": "22f68de409eda699296c3de5f4b74fa18a26ac460098c550c19326c6dbdaf31d",
        "v0003_refused_instances.py": "d9059d9d1824dd459e8543dbe83e1f5f6f39d8cb87e49119864854d3ac278d7b",
        "v0004_ends.py": "6d8c9df8385d5aea5c8a2e07f9cd14a0d2ad1725b5c4588ce71cae58af75ea2b",
        "v0005_second_copies.py": "bb2136e18c41a85af850fafbe13609e504982c5688a88aadda30ce7c0a232fa6",
        "v0006_waiting_deliveries.py": "b882188dcbdefef8ae280cced77cc0171c4e9749584264aa2b25a2b9a7aa2b60",
    },
}


@pytest.fixture
def old(tmp_path):
    """The path of an index of version 0.1.0."""
    return index_of("0.1.0", tmp_path / "node.db")


def dump(path):
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as index:
        return "\n".join(index.iterdump())


def test_released_migrations_are_as_they_were_released():
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (MIGRATIONS / "versions").glob("v*.py")}
    frozen = {name: digest for released in FROZEN.values() for name, digest in released.items()}
    assert {name: found.get(name) for name in frozen} == frozen


def test_the_migrations_of_this_version_are_pinned():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] in FROZEN, "a release pins what it adds, or has an empty entry"


def test_the_fixture_has_rows_in_every_table_of_its_time(old):
    with sqlite3.connect(old) as index:
        tables = [name for (name,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert all(index.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)
    assert len(tables) >= 12


def test_an_index_of_0_1_0_keeps_every_row_and_answers_every_question(old, tmp_path):
    with sqlite3.connect(old) as index:
        before = {
            name: index.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for (name,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
    database = open_database(f"sqlite:///{old}")
    files = files_of("0.1.0", tmp_path)
    with database.read() as tx:
        assert audit.verify(tx) is None
        for table in Base.metadata.sorted_tables:
            if table.name in before and table.name != "properties":
                assert tx.scalar(select(func.count()).select_from(table)) == before[table.name], table.name
                tx.execute(select(table)).all()
        held = [item for one in series.list_series(tx) for item in series.series_instances(tx, one.series_pk)]
        assert len(held) == 23
        may_be_empty = ("series_without_outcome", "instances_refused", "reader_verdicts", "batch_results")
        for name in re.findall(r"CREATE VIEW (\w+)", VIEWS.read_text()):
            assert tx.exec_driver_sql(f"SELECT * FROM {name}").all() or name in may_be_empty
        assert status(tx, 0.0)
    for item in held:
        assert files.read_verified(item.path, item.sha256)
    database.close()


COLUMNS = "id, outcome, reason_code, probability, threshold, positive, lung_volume_ml, unet_sha256, decovnet_sha256"


def test_what_columns_said_of_a_result_is_said_by_code_and_its_seal_still_holds(tmp_path):
    path = index_of("0.2.0", tmp_path / "node.db")
    with sqlite3.connect(path) as index:
        before = index.execute(f"SELECT {COLUMNS} FROM results ORDER BY id").fetchall()
    assert [row[1] for row in before] == ["ANALYSED", "ANALYSED", "NOT_ANALYSED", "ANALYSED"]
    database = open_database(f"sqlite:///{path}")
    with database.read() as tx:
        after = tx.exec_driver_sql(
            "SELECT w.result_id, w.outcome, r.reason_code, w.probability, w.threshold, r.positive, r.lung_volume_ml,"
            " w.unet_sha256, w.decovnet_sha256 FROM result_weights w JOIN model_results r USING (result_id) ORDER BY 1"
        ).all()
        assert [tuple(row) for row in after] == before
        contents = contents_of(tx, [row[0] for row in before])
        assert check(tx).problems == ()
    database.close()
    assert [len(one.findings) for one in contents.values()] == [1, 1, 0, 1]
    (finding,), (measured,) = contents[4].findings, contents[4].measurements
    assert (finding.concept, finding.certainty, finding.positive) == (FORMER_FINDING, before[3][3], False)
    assert (measured.concept, measured.value, measured.unit) == (VOLUME, before[3][6], MILLILITRE)


@pytest.mark.parametrize(
    "tampering", ["findings SET certainty = 0.5", "measurements SET value = 1", "model_weights SET sha256 = 'other'"]
)
def test_a_result_of_before_that_is_altered_now_shows(tmp_path, tampering):
    database = open_database(f"sqlite:///{index_of('0.2.0', tmp_path / 'node.db')}")
    with database.transaction() as tx:
        tx.exec_driver_sql(f"UPDATE {tampering}")
    with database.read() as tx:
        assert "altered" in check(tx).problems[0]
    database.close()


def test_references_between_rows_are_checked_again_after_an_upgrade(old):
    database = open_database(f"sqlite:///{old}")
    with pytest.raises(IntegrityError), database.transaction() as tx:
        tx.exec_driver_sql("UPDATE deliveries SET result_id = 999")
    with database.read() as tx:
        assert tx.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    database.close()


def test_the_old_index_is_kept_beside_the_new_one(old):
    before = dump(old)
    database = open_database(f"sqlite:///{old}")
    backup = database.backup_path("0001")
    database.close()
    assert backup.name == "node.db.schema-0001.backup"
    assert dump(backup) == before
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert [path for path in old.parent.iterdir() if path.name.startswith(f"{backup.name}")] == [backup]


def test_what_was_committed_but_is_only_in_the_log_is_in_the_copy(old):
    holder = sqlite3.connect(old)
    holder.execute("PRAGMA journal_mode = WAL")
    holder.execute("INSERT INTO properties VALUES ('last', 'word')")
    holder.commit()
    database = open_database(f"sqlite:///{old}")
    assert "'last'" in dump(database.backup_path("0001"))
    database.close()
    holder.close()


def test_an_index_that_is_new_or_up_to_date_is_not_copied(old, tmp_path):
    for path in (old, old, tmp_path / "new.db"):
        open_database(f"sqlite:///{path}").close()
        Path(f"{old}.schema-0001.backup").unlink(missing_ok=True)
    assert not list(tmp_path.glob("*.backup"))


def broken_migration(tmp_path, monkeypatch, body):
    """One more migration than there are."""
    folder = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    head = ScriptDirectory.from_config(migrations()).get_current_head()
    (folder / "versions" / "v9000_broken.py").write_text(
        f"from alembic import op\nrevision = '9000'\ndown_revision = '{head}'\n"
        f"branch_labels = depends_on = None\n\ndef upgrade():\n    {body}\n"
    )
    monkeypatch.setattr(module, "MIGRATIONS", folder)


def test_a_migration_that_fails_half_way_leaves_the_old_index_as_it_was(old, tmp_path, monkeypatch):
    before = dump(old)
    broken_migration(tmp_path, monkeypatch, "op.execute('DROP VIEW connections'); op.execute('DELETE FROM nothing')")
    with pytest.raises(Exception, match="nothing"):
        open_database(f"sqlite:///{old}")
    assert dump(old) == before
    monkeypatch.undo()
    open_database(f"sqlite:///{old}").close()


def test_without_a_copy_nothing_is_changed(old, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = dump(old)
    monkeypatch.setattr(module, "back_up", full)
    with pytest.raises(StorageError, match="no copy of the index before its schema changes: No space left"):
        open_database(f"sqlite:///{old}")
    assert dump(old) == before


def test_an_index_of_a_later_version_is_neither_copied_nor_changed(old):
    with sqlite3.connect(old) as index:
        index.execute("UPDATE alembic_version SET version_num = '9999'")
    before = dump(old)
    with pytest.raises(DatabaseTooNew):
        open_database(f"sqlite:///{old}")
    assert dump(old) == before
    assert not list(old.parent.glob("*.backup"))


def test_the_documented_views_are_exactly_those_of_the_index(tmp_path):
    text = DOCS.read_text()
    documented = {
        name: re.findall(r"`(\w+)`", columns)
        for name, columns in re.findall(
            r"^## (\w+)\n\nSince version .*?\n\nColumns: (.*?)\.(?:\n\n|\n*\Z)", text, re.M | re.S
        )
    }
    database = open_database(f"sqlite:///{tmp_path}/index.sqlite")
    with database.read() as tx:
        real = {
            name: [row[1] for row in tx.exec_driver_sql(f"PRAGMA table_info({name})")]
            for name in tx.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'view'").scalars()
        }
        version = tx.exec_driver_sql("SELECT version FROM views_version").scalar()
    database.close()
    assert documented == real
    assert re.search(r"^- Version (\d+):", text, re.M)[1] == str(version), (
        "the changelog begins with the version there is"
    )
