"""Fixtures that more than one folder of tests uses."""

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from storage.database import Database

if TYPE_CHECKING:
    from tests.s3 import S3

HOOKS = sys.excepthook, threading.excepthook
ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DICOM_NODE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of scans and weights that may not be in the repository; skips if it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real scans and weights are not at {SHARED}; set DICOM_NODE_SHARED to their folder")
    return SHARED


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command that runs inside a test configures the process's logs, on a stream that is closed with the command."""
    yield
    structlog.reset_defaults()
    sys.excepthook, threading.excepthook = HOOKS


@pytest.fixture(autouse=True)
def closed_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every index that a test opened is closed after it: a process with 1024 open files can use no socket any more."""
    opened: list[Database] = []
    make = Database.__init__

    def noted(self: Database, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        opened.append(self)

    monkeypatch.setattr(Database, "__init__", noted)
    yield
    for database in opened:
        database.close()


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an S3 server that all tests of this process share."""
    from tests.s3 import s3_server

    with s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def s3(s3_port: int) -> "Iterator[S3]":
    """A bucket of its own on it."""
    from tests.s3 import S3

    made = S3(s3_port)
    yield made
    made.gate.shut()


def require_program(name: str) -> str:
    """Path of a real peer program, never the one of the same name that pynetdicom installs in a venv."""
    for folder in ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"):
        found = shutil.which(name, path=folder)
        if found:
            return found
    pytest.skip(f"{name} is not installed (Debian packages dcmtk, orthanc, libpixelmed-java)")


def require_dicomweb() -> str:
    """Path of Orthanc's plugin for DICOMweb."""
    for found in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb*"):
        return str(found)
    pytest.skip("Orthanc's DICOMweb plugin is not installed (Debian package orthanc-dicomweb)")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """In CI a skipped test counts as failed, because everything that the tests need must be installed there."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {item.nodeid}: {report.longrepr}"
