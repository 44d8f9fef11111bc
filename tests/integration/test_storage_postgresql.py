"""The same contract on PostgreSQL: the tests of the index, run again on a server of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgresql import postgresql_server

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = [
    "series",
    "concurrency",
    "selection",
    "jobs",
    "deliveries",
    "audit",
    "views",
    "reconcile",
    "refused",
]
LOST = [
    "batches",
    "examinations",
    "identity",
    "orphans",
    "flat",
    "tallies",
    "audit_archive",
    "messages",
    "forget",
    "former",
]
PAGES = ["verdicts", "listings", "worklist", "questions"]
OUTSIDE = ["audit_messages"], ["notifications"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server for this module."""
    with postgresql_server() as url:
        yield url


@pytest.mark.parametrize("names", [CONTRACT, LOST, PAGES, *OUTSIDE])
def test_the_contract_of_the_index_holds_on_postgresql(names: list[str], server: str) -> None:
    prefix = "test_" if names in OUTSIDE else "test_storage_"
    files = [f"tests/unit/{prefix}{name}.py" for name in names]
    if names is CONTRACT:
        files.append("tests/integration/test_storage_processes.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not sqlite", *files],
        cwd=ROOT,
        env={**os.environ, "DICOM_NODE_TEST_DATABASE": server},
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout
