"""The documents as a site: built without a warning, whole, searchable, and with nothing from elsewhere."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    yield folder / "site"


def test_every_document_is_a_page_that_can_be_found(site: Path) -> None:
    documents = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    renamed = {Path("README.html"): Path("documents.html")}
    pages = [renamed.get(one, one.parent / "index.html" if one.stem == "README" else one) for one in documents]
    assert [page for page in pages if not (site / page).is_file()] == []
    found = {
        one["location"].split("#")[0] for one in json.loads((site / "search" / "search_index.json").read_text())["docs"]
    }
    assert {page.as_posix() for page in pages} - found == set()


def test_the_reference_has_what_the_program_has(site: Path) -> None:
    pages = {path.stem: path.read_text() for path in (site / "reference").glob("*.html")}
    assert "max_pdu_bytes" in pages["settings"]
    assert "131072" in pages["settings"]
    assert "MISSING_SLICES" in pages["reason-codes"]
    assert "patient_history" in pages["views"]
    assert "dicom_node_jobs_oldest_seconds" in pages["metrics"]
    assert "dicom-node series show" in pages["commands"]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = [
        found
        for page in site.rglob("*.html")
        for found in re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text())
    ]
    assert loaded == []
