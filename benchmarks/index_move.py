"""How fast an index goes from SQLite to PostgreSQL and back: rows a second, copied, and compared row by row.

    python -m benchmarks.index_move --folder DIR [--series 100000]

Starts a PostgreSQL server of its own on this machine that syncs what it commits. `benchmarks/index_fill.py` says what
the rows are; their audit trail has no hashes, which the move finds in both.
"""

import argparse
import time
from pathlib import Path

from sqlalchemy import text

from benchmarks.index_fill import fill
from storage.database import Database, open_database
from storage.facts import set_fact
from storage.identity import EPOCH, STORE
from storage.moving import Mover
from tests.postgresql import postgresql_server


def main() -> None:
    """Fill an index if there is none yet, and move it there and back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the index is made, and kept")
    parser.add_argument("--series", type=int, default=100_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    first = options.folder / f"index-{options.series}.db"
    if not first.exists():
        fill(f"sqlite:///{first}", options.series)
    old = open_database(f"sqlite:///{first}")
    with old.transaction() as tx:
        tx.execute(text("DELETE FROM properties WHERE name = 'moved'"))
        set_fact(tx, STORE, "benchmark")
        set_fact(tx, EPOCH, "1")
    back = options.folder / "back.db"
    back.unlink(missing_ok=True)
    with postgresql_server(durable=True) as url:
        there = Database(url)
        _move(old, there)
        _move(there, Database(f"sqlite:///{back}"))
        there.close()


def _move(old: Database, new: Database) -> None:
    mover = Mover(old, new)
    mover.begin()
    rows = mover.rows()
    what = f"{old.url.get_backend_name()} to {new.url.get_backend_name()}, {rows} rows:"
    began = time.perf_counter()
    mover.copy()
    _say(f"{what} copied", rows, began)
    began = time.perf_counter()
    moved = mover.compare()
    _say(f"{what} compared", rows, began)
    mover.finish(moved, time.time(), "benchmark")


def _say(what: str, rows: int, began: float) -> None:
    took_s = time.perf_counter() - began
    print(f"{what} in {took_s:.0f} s, {rows / took_s:.0f} rows/s", flush=True)


if __name__ == "__main__":
    main()
