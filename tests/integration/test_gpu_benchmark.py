"""The GPU benchmark: a part that fails leaves the others as they are."""

import os
import subprocess
import sys


def test_each_part_says_for_itself_that_there_is_no_gpu() -> None:
    parts = ("Machine", "Memory")
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cuda:7", "--slices", "4", "--parts", *parts],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0
    said = ran.stdout.split("## ")[1:]
    assert [one.splitlines()[0] for one in said] == list(parts)
    assert all('FAILED: ModelError: device "cuda:7": this machine has 0 CUDA devices' in one for one in said)
