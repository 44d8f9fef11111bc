"""The command line loads what the first argument names, and has the same commands as when it loads all."""

import subprocess
import sys

import pytest
import typer

from dicom_node.cli.app import app
from dicom_node.cli.main import MODULES, with_commands


def help_of(command_line: typer.Typer, word: str) -> str:
    """What `dicom-node WORD --help` prints."""
    from typer.testing import CliRunner

    said = CliRunner().invoke(command_line, [word, "--help"], prog_name="dicom-node", env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    return said.output


def test_each_command_and_no_other_is_in_the_table() -> None:
    names = {one.name or one.callback.__name__.replace("_", "-") for one in app.registered_commands if one.callback}
    assert names | {group.name for group in app.registered_groups} == set(MODULES)


@pytest.mark.parametrize("word", MODULES)
def test_a_command_is_the_same_whether_it_is_loaded_alone_or_with_all(word: str) -> None:
    assert help_of(with_commands(MODULES[word]), word) == help_of(app, word)


def said_by(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own, which then says which modules it loaded."""
    script = (
        "import atexit, sys; atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr));"
        "from dicom_node.cli.main import main; main()"
    )
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)


def test_a_command_loads_no_other_and_no_heavy_library() -> None:
    loaded = set(said_by("status", "--help").stderr.split())
    assert "dicom_node.cli.status" in loaded
    assert not loaded & {"dicom_node.cli.backup", "dicom_node.cli.demo", "torch", "scipy", "pynetdicom", "highdicom"}


def test_the_version_and_a_word_that_is_no_command_are_answered() -> None:
    assert said_by("--version").stdout.startswith("dicom-node ")
    wrong = said_by("statis")
    assert wrong.returncode == 2 and "No such command 'statis'" in wrong.stderr
    assert said_by().stdout.count("Commands") == 1
