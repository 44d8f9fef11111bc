"""`dicom-node demo`: one screen that ends with the results of both models beside the truth, and files that stay."""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

from PIL import Image
from pydicom import dcmread

from dicom_node.demo.reports import Truth, judge


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
    end = "\n".join(lines[-7:])
    for said in (
        r"positive +demonstration +lesions +positive, \d+\.\d+ %",
        r"positive +densitometry +12\.\d % low attenuation +12\.\d % low attenuation",
        r"negative +demonstration +no lesions +negative, \d+\.\d+ %",
        r"negative +densitometry +0\.\d % low attenuation +0\.\d % low attenuation",
    ):
        assert re.search(f"^{said}$", end, re.M), end
    for case, model in product(("positive", "negative"), ("demonstration", "densitometry")):
        folder = tmp_path / "demo" / case / model
        with Image.open(folder / "summary.png") as picture:
            assert picture.size == (1024, 768)
        assert dcmread(folder / "report.dcm").Modality == "SR" and f"{case}/{model}/report.dcm" in done.stdout
    assert "COVID-19: Certainty of Finding 99" in done.stdout
    assert "share of lung parenchyma 12." in done.stdout and "Mean Attenuation Coefficient -8" in done.stdout
    with_wrong_truth = judge(dcmread(folder / "report.dcm"), Truth(lesions=False, low_percent=2.0))
    assert not with_wrong_truth.is_right


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = demo(tmp_path)
    assert done.returncode == 1 and "holds something else" in done.stderr
    assert (tmp_path / "thesis.txt").exists()
