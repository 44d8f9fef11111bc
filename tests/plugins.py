"""The example package, installed as a site does it, but into a folder of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
EXAMPLE = REPOSITORY / "examples" / "plugin-torchscript"


def pip_into(folder: Path) -> dict[str, str]:
    """The environment in which `pip install` installs into a folder, without network, and Python finds it there."""
    path = os.pathsep.join([str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    quiet = {"PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    # pip takes "0" for "without isolation", in which it would download setuptools.
    return {**os.environ, **quiet, "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(folder), "PYTHONPATH": path}


def copy_example(checkout: Path) -> Path:
    """A copy of the package at its place in a checkout, because building it leaves files there."""
    return shutil.copytree(EXAMPLE, checkout / EXAMPLE.relative_to(REPOSITORY))


def install_example(folder: Path, checkout: Path) -> None:
    """Install the example package into a folder. checkout: an empty folder to build it in."""
    command = [sys.executable, "-m", "pip", "install", str(copy_example(checkout))]
    subprocess.run(command, check=True, env=pip_into(folder), timeout=120)
