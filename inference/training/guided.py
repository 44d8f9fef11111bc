"""DeCoVNet for the demonstration, in minutes on a CPU: guided by the phantoms' known lesions.

    python -m inference.training.guided --out DIR

The paper learns from volume-level labels alone; that takes hours on hundreds of volumes (`decovnet_training.py`).
Phantoms know where their lesions are, so a second loss asks the feature volume for them. The classifier then finds
what it needs at once.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from inference.decovnet import COVID, DeCoVNet
from inference.training.cohort import TEST_SEEDS_FROM, Shapes, draw_test_phantom, draw_training_phantom
from inference.training.decovnet_training import initialise, roc_auc
from inference.training.preparation import grey_values, resize

SIZE = (112, 168)
SHAPES = Shapes(sizes=(256,), slices=(28, 44))
STRIDE = 8


@dataclass(frozen=True)
class GuidedCase:
    """volume: uint8 (2, T, H, W), grey 0..255 and lungs 0/1.  lesions: float32 (T / 2, H / 8, W / 8), share."""

    volume: Tensor
    lesions: Tensor
    covid: bool


def prepare(seed: int) -> GuidedCase:
    """One phantom as DeCoVNet gets it, with its lesions on the grid of the feature volume."""
    phantom = (draw_test_phantom if seed >= TEST_SEEDS_FROM else draw_training_phantom)(seed, SHAPES)
    grey = resize(grey_values(phantom.hu), SIZE)
    lungs = resize(torch.from_numpy(phantom.lung_mask.astype(np.uint8)), SIZE)
    lesions = resize(torch.from_numpy(phantom.lesion_mask.astype(np.uint8) * np.uint8(255)), SIZE).float() / 255
    coarse = functional.avg_pool3d(lesions[None], (2, STRIDE, STRIDE))[0]
    return GuidedCase(torch.stack([grey, lungs]), coarse, phantom.covid)


def prepare_all(seeds: list[int], workers: int) -> list[GuidedCase]:
    """Prepared phantoms in the order of their seeds."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return [GuidedCase(torch.from_numpy(v), torch.from_numpy(x), c) for v, x, c in pool.map(_plain, seeds)]


def _plain(seed: int) -> tuple[np.ndarray, np.ndarray, bool]:
    torch.set_num_threads(1)
    case = prepare(seed)
    return case.volume.numpy(), case.lesions.numpy(), case.covid


def network_input(case: GuidedCase) -> Tensor:
    """Grey and mask 0 to 1: float32 (1, 2, T, H, W)."""
    volume = case.volume.float()
    return torch.stack([volume[0] / 255, volume[1]])[None]


def train(cases: list[GuidedCase], seconds: float, learning_rate: float = 1e-3, seed: int = 0) -> DeCoVNet:
    """Learn from the cases, four a step, until the time is over. Batch statistics, as at use.

    First the feature volume learns where lesions are; then the classifier starts from that, and both learn on.
    """
    torch.manual_seed(seed)
    network = DeCoVNet("batch", 0.0)
    initialise(network)
    finder = nn.Conv3d(128, 1, 1)
    _learn(network, finder, cases, seconds * 0.4, learning_rate, verdict=False)
    start_classifier(network, finder)
    _learn(network, finder, cases, seconds * 0.6, learning_rate / 4, verdict=True)
    return network.eval()


def _learn(
    network: DeCoVNet, finder: nn.Conv3d, cases: list[GuidedCase], seconds: float, rate: float, *, verdict: bool
) -> None:
    optimizer = torch.optim.Adam([*network.parameters(), *finder.parameters()], lr=rate)
    started, done = time.monotonic(), 0
    losses: list[tuple[float, float]] = []
    network.train()
    while (spent := time.monotonic() - started) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (done + 4) / 40) * min(1.0, 2 * (1 - spent / seconds) + 0.02)
        optimizer.zero_grad()
        for _ in range(4):
            case = cases[int(torch.randint(len(cases), (1,)))]
            of_verdict, of_lesions = _losses(network, finder, case)
            total = of_verdict + of_lesions if verdict else of_lesions
            (total / 4).backward()  # type: ignore[no-untyped-call]
            losses.append((of_verdict.item(), of_lesions.item()))
            done += 1
        optimizer.step()
        if done % 40 == 0:
            mean = np.mean(losses[-40:], axis=0)
            _say(f"{done} volumes, {spent:.0f} s: verdict loss {mean[0]:.3f}, lesion loss {mean[1]:.3f}")


def _losses(network: DeCoVNet, finder: nn.Conv3d, case: GuidedCase) -> tuple[Tensor, Tensor]:
    features = network.features(network_input(case))
    verdict = functional.cross_entropy(network.classify(features), torch.tensor([int(case.covid)]))
    found = finder(features)[0, 0]
    wanted = case.lesions[: found.shape[0], : found.shape[1], : found.shape[2]]
    lesions = functional.binary_cross_entropy_with_logits(found, wanted, pos_weight=torch.tensor(10.0))
    return verdict, lesions


@torch.no_grad()
def start_classifier(network: DeCoVNet, finder: nn.Conv3d, channels: int = 8) -> None:
    """Let the classifier begin as "how sure is the finder anywhere": without it, its last layers die at the start.

    channels: how many carry the finder's answer through, each above another level; the rest start near nothing.
    """
    convolutions = [layer for layer in network.head if isinstance(layer, nn.Conv3d)]
    for layer in convolutions:
        layer.weight.mul_(0.1)
        layer.weight[:channels] = 0
    first, second, third = convolutions
    for channel in range(channels):
        first.weight[channel, :, 1, 1, 1] = finder.weight[0, :, 0, 0, 0]
        first.bias[channel] = finder.bias[0] + 3 - channel  # type: ignore[index]
        second.weight[channel, channel, 1, 1, 1] = 1
        third.weight[channel, channel, 1, 1, 1] = 1
    hidden, last = network.classifier[0], network.classifier[1]
    nn.init.eye_(hidden.weight)  # type: ignore[arg-type]
    nn.init.zeros_(hidden.bias)  # type: ignore[arg-type]
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    last.weight[COVID, :channels] = 0.2  # type: ignore[operator]
    last.bias.copy_(torch.tensor([0.0, -2.0]))  # type: ignore[operator]


def evaluate(network: DeCoVNet, cases: list[GuidedCase]) -> dict[str, object]:
    """ROC AUC and how far apart the classes are."""
    with torch.inference_mode():
        found = [float(network(network_input(case)).softmax(1)[0, COVID]) for case in cases]
    labels = [case.covid for case in cases]
    return {
        "cases": len(cases),
        "roc_auc": round(roc_auc(labels, found), 4),
        "accuracy": sum((p >= 0.5) == covid for p, covid in zip(found, labels, strict=True)) / len(cases),
        "highest_negative": round(max(p for p, covid in zip(found, labels, strict=True) if not covid), 4),
        "lowest_positive": round(min(p for p, covid in zip(found, labels, strict=True) if covid), 4),
    }


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """The command line of `python -m inference.training.guided`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for decovnet.safetensors and metrics.json")
    parser.add_argument("--training", type=int, default=160)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    training = prepare_all(list(range(chosen.training)), chosen.workers)
    network = train(training, chosen.seconds, chosen.learning_rate)
    chosen.out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in sorted(network.state_dict().items())}
    save_file(state, str(chosen.out / "decovnet.safetensors"))
    tests = prepare_all([TEST_SEEDS_FROM + i for i in range(chosen.test)], chosen.workers)
    metrics = {"test": evaluate(network, tests), "seen": evaluate(network, training[:20])}
    (chosen.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    _say(json.dumps(metrics))


if __name__ == "__main__":
    main()
