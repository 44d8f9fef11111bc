"""What the repository says about itself: documents that are held to the code, and links that lead somewhere."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dicom_node", "inference", "storage", "config")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_broad_excepts_are_those_that_contributing_lists() -> None:
    found = sorted(
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if "noqa: BLE001" in line
    )
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("### Broad excepts")[2].partition("### ")[0]
    assert sorted(re.findall(r"^\| `(\S+)` \|", section, flags=re.MULTILINE)) == found
    assert f"there are {len(found)} in the packages" in section


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []
    named = re.findall(r"`((?:dicom_node|inference|storage|config|tests|benchmarks|docs)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_that_are_run_exist(document: Path) -> None:
    modules = re.findall(r"python -m ((?:dicom_node|inference|tests|benchmarks|config)[\w.]*)", document.read_text())
    files = [ROOT / (module.rstrip(".").replace(".", "/") + ".py") for module in modules]
    assert [file for file in files if not file.is_file() and not (file.with_suffix("") / "__main__.py").is_file()] == []


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {name for document in DOCUMENTS for name in re.findall(r"`make ([a-z-]+)", document.read_text())}
    assert named <= targets


def test_make_alone_lists_every_target_that_a_person_calls() -> None:
    said = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony
    assert set(re.findall(r"^  make (\S+)", said, flags=re.MULTILINE)) == set(phony[1].replace("\\", " ").split())


def test_benchmarks_are_modules() -> None:
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert "sys.path" not in path.read_text(), path.name
        assert path.stem not in PACKAGES, f"{path.name} has the name of a package"


def test_the_documents_index_names_every_document() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    documents = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert [name for name in documents if f"({name})" not in index] == []
    decisions = (ROOT / "docs" / "decisions" / "README.md").read_text()
    records = [path.name for path in (ROOT / "docs" / "decisions").glob("0*.md")]
    assert [name for name in records if f"({name})" not in decisions] == []


def test_every_floor_of_the_program_is_described() -> None:
    described = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [
        f"{package}/{path.name}/"
        for package in ("dicom_node", "inference")
        for path in (ROOT / package).iterdir()
        if path.is_dir() and (path / "__init__.py").is_file()
    ]
    assert [room for room in rooms if f"`{room}`" not in described] == []


def test_the_version_has_a_line_in_the_changelog() -> None:
    version = re.search(r"^version = (\S+)", (ROOT / "setup.cfg").read_text(), flags=re.MULTILINE)
    assert version
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_lock_pins_what_setup_cfg_pins() -> None:
    wanted, lock = (ROOT / "setup.cfg").read_text(), (ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^ +([A-Za-z0-9_-]+)(?:\[\w+\])?==(\S+)$", wanted, re.MULTILINE))
    locked = dict(re.findall(r"^([a-z0-9_-]+)==([^ ;]+)", lock, re.MULTILINE))
    del pinned["torch"]
    assert {name: locked.get(name.lower()) for name in pinned} == pinned


def test_the_migrations_are_one_chain() -> None:
    """Two that follow the same one were written side by side: the later to land follows the other."""
    texts = [path.read_text() for path in (ROOT / "storage/migrations/versions").glob("v*.py")]
    followed = [found[1] for text in texts if (found := re.search(r'^down_revision = "(\d+)"', text, re.M))]
    assert sorted(followed) == sorted(set(followed))
    assert len(followed) == len(texts) - 1


def test_no_tool_reads_two_versions_of_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert "python_version = 3.11" in (ROOT / "setup.cfg").read_text()
