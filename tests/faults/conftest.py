"""Fixtures of the fault tests; prints their figures at the end of a run."""

from collections.abc import Iterator

import pytest

from tests.zygote import Zygote

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The process from which nodes are forked."""
    running = Zygote(faults=True)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines to print at the end of the run."""
    return pytestconfig.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the counts of the fault tests."""
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(line)
