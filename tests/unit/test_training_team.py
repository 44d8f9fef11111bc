"""Two processes, as torchrun starts them, learn what one process learns with twice the samples in a step."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import team


def together(out: Path, *arguments: int) -> dict[str, Any]:
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.team"]
    done = subprocess.run(
        [sys.executable, *run, str(out), *map(str, arguments)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return read(out)


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / "result.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes with one sample each come to, undisturbed."""
    return together(tmp_path_factory.mktemp("both"), 1)


def test_two_processes_learn_what_one_with_twice_the_samples_learns(tmp_path: Path, both: dict[str, Any]) -> None:
    team.main(tmp_path, 2)
    alone = read(tmp_path)
    assert alone["state"].keys() == both["state"].keys()
    for name, tensor in alone["state"].items():
        # Adam divides by the gradient's size: sums rounded in another order move a weight by a share of its step.
        assert torch.allclose(tensor.float(), both["state"][name].float(), rtol=1e-3, atol=2e-4), name
    assert torch.equal(alone["state"]["inc.double_conv.1.num_batches_tracked"], torch.tensor(10))
    assert torch.allclose(torch.tensor(alone["score"]), torch.tensor(both["score"]), atol=1e-3)


def test_a_stopped_team_goes_on_to_the_same_weights(tmp_path: Path, both: dict[str, Any]) -> None:
    together(tmp_path, 1, 4)
    resumed = together(tmp_path, 1)
    assert all(torch.equal(tensor, resumed["state"][name]) for name, tensor in both["state"].items())
    assert both["score"] == resumed["score"]
