"""Every `dicom-node` command in the documents: the program has it with these options, and some test runs it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.text import Text

from dicom_node.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "config" / "node.toml"])
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name)
RUN_OTHERWISE = {
    "dicom-node audit archive": "tests/unit/test_storage_audit_archive.py",
    "dicom-node batch report": "tests/integration/test_batch_sources.py",
    "dicom-node batch status": "tests/integration/test_batch_sources.py",
    "dicom-node canary run": "tests/integration/test_canary.py",
}
"""Commands that no test names in one piece; what runs them, or the function behind them."""


def documented(text: str) -> set[str]:
    """The commands in code spans and code blocks, without comments and what stands for something else."""
    joined = re.sub(r"\\\n\s*", " ", text)
    spans = re.findall(r"`(dicom-node\s[^`]+)`", joined)
    fenced = "\n".join(re.findall(r"^```.*?\n(.*?)^```", joined, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^ {4,}(.*)$", joined, re.MULTILINE))
    started = r"^\s*(?:\$ )?(?:\S+/|sudo (?:-u \S+ )?)?(dicom-node .*)$"
    blocks = re.findall(started, f"{fenced}\n{indented}", re.MULTILINE)
    return {" ".join(re.split(r"\s#|[|>&;]|\.\.\.", found)[0].split()) for found in [*spans, *blocks]}


COMMANDS = {path: documented(path.read_text()) for path in DOCUMENTS}
PROGRAM: Any = typer.main.get_command(app)


def walked(command: str) -> tuple[str, Any, list[str]]:
    """The name of a command with those above it, the command, and what follows."""
    first, *words = shlex.split(command)
    found, names = PROGRAM, [first]
    while words and words[0] in getattr(found, "commands", {}):
        names.append(words.pop(0))
        found = found.commands[names[-1]]
    return " ".join(names), found, words


def problem(command: str) -> str:
    """What the program does not know of a documented command; empty if it knows all of it."""
    name, found, rest = walked(command)
    options = {"--help"}.union(*({*one.opts, *one.secondary_opts} for one in found.params))
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.split("=")[0] not in options]
    if rest and hasattr(found, "commands") and not rest[0].startswith("-"):
        unknown.append(rest[0])
    return f"{name} has no {unknown}" if unknown else ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_program_has_the_commands_of_a_document(document: Path) -> None:
    assert [found for found in map(problem, sorted(COMMANDS[document])) if found] == []


def test_a_command_that_does_not_exist_is_found_out() -> None:
    assert problem("dicom-node series shew 7") == "dicom-node series has no ['shew']"
    assert problem("dicom-node series show 7 --loud") == "dicom-node series show has no ['--loud']"
    assert problem("dicom-node series show 7 --json") == ""
    assert documented("text `dicom-node status`\n\n    dicom-node series list | less  # all\n") == {
        "dicom-node status",
        "dicom-node series list",
    }


def helps(command: Any) -> Iterator[str]:
    """What --help says of a command, its parameters and the commands below it, as rich's markup."""
    yield command.help or ""
    yield from (getattr(one, "help", None) or "" for one in command.params)
    for below in getattr(command, "commands", {}).values():
        yield from helps(below)


def test_no_help_loses_the_name_of_a_section_as_markup() -> None:
    assert [said for said in helps(PROGRAM) if Text.from_markup(said).plain != said.replace("\\[", "[")] == []


def test_some_test_runs_each_documented_command() -> None:
    names = {walked(command)[0] for commands in COMMANDS.values() for command in commands}
    assert [name for name in sorted(names) if not _is_run(name) and name not in RUN_OTHERWISE] == []
    assert all((ROOT / file).is_file() for file in RUN_OTHERWISE.values())


def _is_run(name: str) -> bool:
    words = name.split()[1:]
    in_a_list = r",\s*".join(f'"{re.escape(word)}"' for word in words)
    return not words or re.search(rf"{in_a_list}|\b{re.escape(' '.join(words))}\b", TESTS) is not None
