"""`dicom-node demo`: one screen that ends with both results beside the truth, and files that stay."""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image


def demo(folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DICOM_NODE_")}
    run = [sys.executable, "-m", "dicom_node", "demo", "--output", str(folder)]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=280)


def test_the_demonstration_fits_one_screen_and_leaves_reports_and_pictures(tmp_path: Path) -> None:
    done = demo(tmp_path / "demo")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) + len(done.stderr.splitlines()) <= 40
    assert "{" not in done.stdout
    end = "\n".join(lines[-5:])
    assert re.search(r"positive +lesions +\d+\.\d+ % +positive\nnegative +no lesions +\d+\.\d+ % +negative\n", end)
    for name in ("positive", "negative"):
        with Image.open(tmp_path / "demo" / name / "summary.png") as picture:
            assert picture.size == (1024, 768)
        assert f"{name}/report.dcm" in done.stdout


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = demo(tmp_path)
    assert done.returncode == 1 and "holds something else" in done.stderr
    assert (tmp_path / "thesis.txt").exists()
