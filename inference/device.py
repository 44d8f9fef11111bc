"""Where the networks run: the only place that chooses a device and a number of threads."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import torch

from inference.errors import DeviceLost, ModelError

Kind = Literal["cpu", "cuda"]

# What libraries below PyTorch say when memory is short: the first is cuDNN, if no algorithm finds room to work in.
_NO_MEMORY = ("unable to find an engine", "ALLOC_FAILED", "ALLOCATION_FAILED", "NOT_INITIALIZED", "out of memory")


@dataclass(frozen=True)
class Device:
    """An available device.

    kind: "cpu" or "cuda".  index: which GPU, 0 for the CPU.  name: the hardware's own name.
    threads: CPU threads that computations may use.
    """

    kind: Kind
    index: int
    name: str
    threads: int

    @property
    def torch_device(self) -> torch.device:
        """The device as PyTorch names it."""
        return torch.device("cpu") if self.kind == "cpu" else torch.device("cuda", self.index)

    @property
    def cpu_threads(self) -> int:
        """Threads that share what a network computes: one on a GPU, where its parts go one by one."""
        return self.threads if self.kind == "cpu" else 1


def choose_device(wanted: str = "auto", threads: int = 0) -> Device:
    """The device for a setting: "auto" (the first GPU if it computes, else the CPU), "cpu", "cuda" or "cuda:N".

    threads: CPU threads; 0 means as many as this process may run on.
    Raises ModelError for any other setting, or for a GPU that is not available or does not compute.
    """
    threads = threads or len(os.sched_getaffinity(0))
    if wanted == "auto" and torch.cuda.is_available():
        with suppress(ModelError):
            return choose_device("cuda", threads)
    if wanted == "auto":
        wanted = "cpu"
    if wanted == "cpu":
        return Device("cpu", 0, _cpu_name(), threads)
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise ModelError(f'device "{wanted}": expected "auto", "cpu", "cuda" or "cuda:N"')
    number = int(index or 0)
    if number >= torch.cuda.device_count():
        raise ModelError(f'device "{wanted}": this machine has {torch.cuda.device_count()} CUDA devices')
    try:
        return Device("cuda", number, _name_if_it_computes(number), threads)
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:  # such as one that fell off the bus
        raise ModelError(f'device "{wanted}": the GPU does not compute ({type(error).__name__})') from error


def _name_if_it_computes(number: int) -> str:
    """A GPU's name. The driver still counts and names one that computes no more, so it has to show that it does."""
    name = torch.cuda.get_device_name(number)
    try:
        torch.ones(1, device=f"cuda:{number}").sum().item()
    except RuntimeError as error:
        if not lacked_memory(error):
            raise
    return name


def lacked_memory(error: RuntimeError) -> bool:
    """True if a computation failed because a GPU was short of memory. PyTorch has a class for only some such errors."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def is_lost(device: Device) -> bool:
    """True if a GPU computes no more for this process: after such an error every call fails, until the process ends."""
    if device.kind == "cpu":
        return False
    try:
        torch.cuda.synchronize(device.torch_device)
    except RuntimeError as error:
        return not lacked_memory(error)
    return False


@contextmanager
def naming_loss(device: Device) -> Iterator[None]:
    """Raise DeviceLost for an error in the block after which the GPU computes no more."""
    try:
        yield
    except RuntimeError as error:
        if is_lost(device):
            raise DeviceLost(f"{device.name} computes no more") from error
        raise


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else "CPU"


def workers(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads each compute alone, so that sums are added in the same order for any number of threads."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute in the calling thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
