"""Fixtures of the fault tests."""

from collections.abc import Iterator

import pytest

from tests.faults.campaign import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Where nodes are forked from."""
    running = Zygote()
    yield running
    running.stop()
