"""The documents as one searchable site: `python docs/site/build.py [FOLDER]`, or `make docs`. Extra: docs.

Stages docs/ with the documents of the root and the pages of reference.py, and has mkdocs build them. Any warning, such
as a link that leads nowhere, is an error. FOLDER: build by default; the site is in its subfolder "site".
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import reference

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE", "NOTICE", "config", "packaging")
"""What documents link to outside docs/."""
FOLDERS = ("reference", "guides", "gateways", "decisions", "project")
"""Whose pages get a group of their own, apart from those that docs/README.md lists by reader."""


def main(folder: Path) -> int:
    """Build the site. Returns mkdocs' exit status."""
    staged = folder / "site-source"
    shutil.rmtree(staged, ignore_errors=True)
    pages = staged / "pages"
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("site", "*.pyc", "__pycache__"))
    (pages / "README.md").rename(pages / "documents.md")
    for name in BESIDE:
        _copy(ROOT / name, pages / "project" / name)
    shutil.copy(ROOT / "README.md", pages / "index.md")
    for name, text in reference.pages().items():
        target = pages / "reference" / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    for page in pages.rglob("*.md"):
        page.write_text(_relinked(page, pages))
    settings = (ROOT / "docs" / "site" / "mkdocs.yml").read_text()
    (staged / "mkdocs.yml").write_text(f"{settings}nav: {json.dumps(_navigation(pages))}\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--config-file", "mkdocs.yml"]
    return subprocess.run(command, cwd=staged, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False).returncode


def _navigation(pages: Path) -> list[dict[str, object]]:
    """Pages by who reads them, as docs/README.md lists them; JSON is YAML too."""
    groups: dict[str, list[str]] = {}
    reader = ""
    listed = (ROOT / "docs" / "README.md").read_text()
    for who, page in re.findall(r"^\| (.*?) ?\| \[.*?\]\(([^)#]+)\) \|", listed, re.MULTILINE):
        reader = who.strip() or reader
        if not page.startswith(".."):
            groups.setdefault(reader[:1].upper() + reader[1:], []).append(page)
    known = {page for group in groups.values() for page in group}
    rest = {name: [page for page in _names(pages, name) if page not in known] for name in FOLDERS}
    return [
        {"Home": "index.md"},
        {"All documents": "documents.md"},
        *({name: group} for name, group in groups.items()),
        *({name.capitalize(): group} for name, group in rest.items() if group),
    ]


def _names(pages: Path, folder: str) -> list[str]:
    return sorted(page.relative_to(pages).as_posix() for page in (pages / folder).glob("*.md"))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py", "*.pyc", "__pycache__", "models"))
    elif source.exists():
        shutil.copy(source, target)


def _relinked(page: Path, pages: Path) -> str:
    """A page's text with its links as they are on the site."""
    place = page.relative_to(pages)
    # Where the document stands in the repository: that is what its links start from.
    origin = ROOT / "docs" / place
    if (place.name in BESIDE and place.parent == Path("project")) or place == Path("index.md"):
        origin = ROOT / ("README.md" if place == Path("index.md") else place.name)
    elif place == Path("documents.md"):
        origin = ROOT / "docs" / "README.md"

    def moved(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if "://" in target or not target or place.parts[0] == "reference":
            return link[0]
        return f"]({os.path.relpath(_place_of((origin.parent / target).resolve(), pages), page.parent)}{anchor})"

    return re.sub(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", moved, page.read_text())


def _place_of(file: Path, pages: Path) -> Path:
    """Where a file of the repository is on the site."""
    inside = file.relative_to(ROOT)
    if inside == Path("docs/README.md"):
        return pages / "documents.md"
    if inside == Path("README.md"):
        return pages / "index.md"
    if inside == Path("config/node.toml"):
        return pages / "reference" / "settings.md"
    if inside.parts[0] == "docs":
        return pages / Path(*inside.parts[1:])
    # A folder has no page: its first file with words in it stands for it.
    found = pages / "project" / inside
    return next(iter(sorted(found.glob("*.yml"))), found) if found.is_dir() else found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build").resolve()))
