"""docs/add-your-model.md, followed to the letter: from an empty folder to a report in Debian's Orthanc."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.conftest import require_program
from tests.plugins import REPOSITORY, copy_example, pip_into
from tests.programs import free_port, orthanc
from tests.validators import dciodvfy_errors

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1800)]


def test_the_page_leads_from_an_empty_folder_to_a_report_in_orthanc(tmp_path: Path) -> None:
    require_program("curl")
    page = (REPOSITORY / "docs" / "add-your-model.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    folder = tmp_path / "empty"
    folder.mkdir()
    copy_example(tmp_path / "checkout")
    with orthanc(tmp_path / "orthanc") as pacs:
        variables = {
            "REPOSITORY": str(tmp_path / "checkout"),
            "ORTHANC_PORT": str(pacs.port),
            "ORTHANC_HTTP": str(pacs.http_port),
            "NODE_PORT": str(free_port()),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        script = [
            "bash",
            "-e",
            "-u",
            "-o",
            "pipefail",
            "-c",
            "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "\n".join(commands),
        ]
        done = subprocess.run(
            script,
            cwd=folder,
            env={**pip_into(tmp_path / "installed"), **variables},
            capture_output=True,
            text=True,
            timeout=550,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    report = folder / "report.dcm"
    assert dciodvfy_errors(report) == []
    said = str(dcmread(report))
    assert "Air" in said and "milliliter" in said
