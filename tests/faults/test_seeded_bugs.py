"""A test suite that catches nothing proves nothing: every seeded bug must make tests that guard its promise fail.

With NODE_FAULT_ROUNDS, all bugs are tried and the matrix is printed; without it, one bug for each kind of test.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.bugs import BUGS, ROOT, VARIABLE
from tests.programs import PATIENCE

FEW = ["answer-before-fsync", "lease-without-fencing"]
ALL = bool(int(os.environ.get("NODE_FAULT_ROUNDS", "0")))


@pytest.mark.parametrize("name", BUGS if ALL else FEW)
@pytest.mark.timeout(1800)
def test_a_seeded_bug_is_caught(name: str, figures: list[str], tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NODE_", "PYTEST_"))}
    environment |= {VARIABLE: name, "PYTHONPATH": str(ROOT), "NODE_FAULT_PATIENCE_S": f"{25 / PATIENCE}"}
    options = ["-q", "-rf", "-p", "tests.faults.bugs", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *BUGS[name].tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    caught = re.findall(r"^FAILED (?:\S*/)?(\S+)", run.stdout, re.MULTILINE)
    figures.append(
        f"seeded bug: {BUGS[name].what}; tests that caught it: {len(caught)}, {caught[0] if caught else '-'}"
    )
    assert run.returncode == 1 and caught, f"nothing noticed that {BUGS[name].what}: {run.stdout[-3000:]}"
    assert "ERROR" not in run.stdout, run.stdout[-3000:]


def test_every_bug_fits_the_code_as_it_is() -> None:
    for name, bug in BUGS.items():
        for module, old, _ in bug.patches:
            source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
            assert source.count(old) == 1, f"{name}: {module}"
