"""A log that cannot be written stops nothing: its disk is full, or nobody reads it any more."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from config.settings import LoggingSettings
from dicom_node import logs

logs.configure(LoggingSettings())
for number in range(1000):
    structlog.get_logger().warning("something happened", number=number)
print("went on")
"""


@pytest.fixture(params=["full", "unread"])
def log(request: pytest.FixtureRequest) -> int:
    """The descriptor of a file on a full disk, or of a pipe without a reader."""
    if request.param == "full":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_the_process_goes_on(log: int) -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, timeout=60, check=False)
    os.close(log)
    assert done.stdout == b"went on\n"
