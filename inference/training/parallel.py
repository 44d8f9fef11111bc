"""Several processes, started by `torchrun`, that train one network.

A step takes `samples_per_step` samples in each process, and its gradient is that of all of them. N processes do the
same as one process with N times the samples per step, up to the rounding of sums. Running statistics go through the
samples in the same order, too.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

# Preparing the inputs of a large data set takes hours, and the other processes wait for that.
LONGEST_WAIT = timedelta(days=2)


@dataclass(frozen=True)
class Team:
    """The processes that train together. rank: this process's number.  size: the number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True in the one process that writes files and reports progress."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a list."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Wait until every process has got here."""
        if self.size > 1:
            dist.barrier()

    def collect(self, values: Sequence[T], total: int) -> list[T]:
        """All processes' results for their `share` of a list, in the list's order."""
        if self.size == 1:
            return list(values)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(values))
        return [parts[number % self.size][number // self.size] for number in range(total)]

    def any(self, flag: bool) -> bool:
        """True if `flag` is true in any process."""
        return any(self.collect([flag], self.size))

    def add_gradients(self, network: nn.Module) -> None:
        """Give every process the sum of all processes' gradients; a process without samples adds nothing."""
        if self.size == 1:
            return
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in parameters])
        dist.all_reduce(flat)
        start = 0
        for parameter in parameters:
            part = flat[start : start + parameter.numel()].reshape(parameter.shape)
            parameter.grad = part.clone()
            start += parameter.numel()

    def join_statistics(self, layers: Iterable[nn.Module], before: Sequence[Tensor], counts: Sequence[int]) -> None:
        """Set running statistics as if one process had seen every sample, those of the first process first.

        layers: normalisation layers that learn.  before: their buffers before the step, as `statistics` gives them.
        counts: samples of each process in this step.
        """
        if self.size == 1:
            return
        after = statistics(layers := list(layers))
        later, total = sum(counts[self.rank + 1 :]), sum(counts)
        for layer, old, new in zip(layers, before, after, strict=True):
            kept = 1.0 - float(layer.momentum)  # type: ignore[arg-type]
            added = (new - old * kept ** counts[self.rank]) * kept**later
            dist.all_reduce(added)
            _set_statistics(layer, old * kept**total + added)
            layer.num_batches_tracked.add_(total - counts[self.rank])  # type: ignore[operator]


def statistics(layers: Iterable[nn.Module]) -> list[Tensor]:
    """The running mean and variance of each layer, copied: (2, C)."""
    return [torch.stack([layer.running_mean, layer.running_var]) for layer in layers]  # type: ignore[list-item]


def _set_statistics(layer: nn.Module, values: Tensor) -> None:
    layer.running_mean.copy_(values[0])  # type: ignore[operator]
    layer.running_var.copy_(values[1])  # type: ignore[operator]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def join_team(device: str) -> tuple[Team, str]:
    """The team that torchrun's environment describes, and this process's device; without torchrun, a team of one.

    device: "auto", "cpu" or "cuda"; each process takes the GPU with its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team(), device
    cuda = torch.cuda.is_available() and device != "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=LONGEST_WAIT)
    return Team(dist.get_rank(), size), f"cuda:{local}" if cuda else "cpu"


def leave_team() -> None:
    """Undo `join_team`."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
