"""Fixtures of the fault tests, and their figures at the end of a run."""

from collections.abc import Iterator

import pytest

from tests.faults.campaign import Zygote

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Where nodes are forked from."""
    running = Zygote()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines to print when all is done."""
    return pytestconfig.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the fault tests counted."""
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(line)
