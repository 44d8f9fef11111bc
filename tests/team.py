"""One process of a team that trains a small U-Net. Tests start it by torchrun, and alone for comparison.

python -m torch.distributed.run --nproc-per-node 2 -m tests.team OUT SAMPLES_PER_STEP [STOP_AFTER]
"""

import sys
from pathlib import Path

import torch

from inference.lungs.unet import UNet
from inference.training.loop import TrainingSettings, train
from inference.training.parallel import join_team, leave_team
from inference.training.unet_training import LungCase, LungTask


def lung_case(seed: int) -> LungCase:
    """Five slices: an odd number, so that the processes differ in the last step of an epoch."""
    lungs = torch.zeros(5, 32, 32, dtype=torch.uint8)
    lungs[:, 8:20, 4 + seed : 14 + seed] = 1
    noise = torch.randint(0, 40, lungs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return LungCase(str(seed), 200 - 150 * lungs + noise, lungs)


def main(out: Path, samples_per_step: int, stop_after: int = 0) -> None:
    """Train two epochs; the leading process writes the weights."""
    torch.set_num_threads(1)
    team, _ = join_team("cpu")
    settings = TrainingSettings(epochs=2, learning_rate=1e-3, samples_per_step=samples_per_step)
    torch.manual_seed(0)
    validation = [lung_case(number) for number in (3, 4, 5)]
    task = LungTask(UNet(), [lung_case(1)], validation, settings, team=team)
    steps = iter(range(1, 1000))
    score = train(task, settings, out, team=team, stop=(lambda: next(steps) == stop_after) if stop_after else None)
    if team.leads:
        torch.save({"state": task.network.state_dict(), "score": [score.metric, score.loss]}, out / "result.pt")
    leave_team()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:]))
