"""Plain code, and variants of the U-Net on a GPU: each is kept only if it gains and gives the same masks."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from benchmarks.analysis_speed import Clock, Stages
from inference.arrays import Grey
from inference.covid.card import read_zheng_card
from inference.covid.weights import load_networks
from inference.device import Device
from inference.lungs.engine_cuda import CudaUnet
from inference.lungs.fused import fuse
from inference.lungs.unet import UNet
from inference.models.profile import Precision
from inference.preprocess import verdict_range

BATCH = 64


def seconds_of(run: Callable[[], object], rounds: int) -> float:
    """The median of some runs after a first one, synchronised."""
    run()
    found = []
    for _ in range(rounds):
        _wait()
        started = time.perf_counter()
        run()
        _wait()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Let float32 products and convolutions round their factors to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plain_code(hu: np.ndarray, folder: Path, device: str, clock: Clock) -> Stages:
    """The published steps as one would write them first: spline zooms on the CPU, the U-Net slice by slice."""
    card = read_zheng_card(folder)
    unet, decovnet = (network.to(device) for network in load_networks(folder, card))
    start, stop = verdict_range(len(hu), card.profile.slices)

    def prepare() -> Grey:
        zoomed = ndimage.zoom(hu, (1, 1, 1), order=3, mode="nearest")
        return np.floor(255 * np.clip((zoomed + 1200.0) / 1800.0, 0, 1)).astype(np.uint8)

    def segment() -> Grey:
        with torch.inference_mode():
            planes = (torch.from_numpy(plane.astype(np.float32) / 255)[None, None].to(device) for plane in grey)
            return np.stack([unet(plane)[0].argmax(0).cpu().numpy().astype(np.uint8) for plane in planes])

    def crop() -> np.ndarray:
        kept, shown = mask[start:stop], grey[start:stop]
        axes = np.nonzero(kept)
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in axes) if kept.any() else (slice(None),) * 3
        image, inside = shown[box], kept[box]
        factors = (1, 224 / image.shape[1], 336 / image.shape[2])
        return np.stack([ndimage.zoom(image, factors, order=3) / 255, ndimage.zoom(inside, factors, order=3)])

    def classify() -> float:
        with torch.inference_mode():
            given = torch.from_numpy(pair.astype(np.float32))[None].to(device)
            return float(torch.softmax(decovnet(given), 1)[0, 1])

    grey = clock.time("preprocess", prepare)
    mask = clock.time("unet", segment)
    pair = clock.time("crop", crop)
    clock.time("decovnet", classify)
    return clock.stages


def table(unet: UNet, grey: Grey, device: Device) -> None:
    """Milliseconds of each variant on all slices, against the engine of the node, and whether the masks are equal."""
    wanted = CudaUnet(unet, device, "float32").masks(grey)
    made: dict[str, Callable[[], Callable[[], Grey]]] = {
        "the node's engine": lambda: _engine(unet, grey, device, "float32"),
        "in TF32": lambda: tf32()(_engine(unet, grey, device, "float32")),
        "in bfloat16": lambda: _engine(unet, grey, device, "bfloat16"),
        "contiguous, no channels-last": lambda: _batched(fuse(unet).to(device.torch_device), grey, device, plain=True),
        "normalisation not fused": lambda: _batched(_unfused(unet, device), grey, device),
        "from pageable memory": lambda: _batched(_fused(unet, device), grey, device),
        "all slices on the GPU before": lambda: _resident(_fused(unet, device), grey, device),
    }
    if device.kind == "cuda":
        made["CUDA graph"] = lambda: _graphed(_fused(unet, device), grey, device)
        made["torch.compile"] = lambda: _batched(_compiled(unet, device), grey, device)
    print("| variant | ms | masks |\n|---|---|---|")
    for name, make in made.items():
        try:
            run = make()
            differing = int(np.sum(run()[: len(wanted)] != wanted))
            said = f"{differing} of {wanted.size} pixels differ" if differing else "the same"
            print(f"| {name} | {1000 * seconds_of(run, 3):.1f} | {said} |")
        except Exception as error:  # noqa: BLE001 - a compiler that is missing has many names
            print(f"| {name} | failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')[:100]} | |")


def _engine(unet: UNet, grey: Grey, device: Device, precision: Precision) -> Callable[[], Grey]:
    engine = CudaUnet(unet, device, precision)
    return lambda: engine.masks(grey)


def _fused(unet: UNet, device: Device) -> torch.nn.Module:
    module: torch.nn.Module = fuse(unet).to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


class _Plain(torch.nn.Module):
    """The network as it was trained, from grey values to a mask."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, grey: Tensor) -> Tensor:
        """uint8 (N, 1, H, W) to uint8 (N, 1, H, W)."""
        return self.unet(grey.float() / 255).argmax(1, keepdim=True).to(torch.uint8)


def _unfused(unet: UNet, device: Device) -> torch.nn.Module:
    module: torch.nn.Module = _Plain(copy.deepcopy(unet)).to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def _compiled(unet: UNet, device: Device) -> torch.nn.Module:
    compiled: torch.nn.Module = torch.compile(_fused(unet, device))  # type: ignore[assignment]
    return compiled


def _batched(network: torch.nn.Module, grey: Grey, device: Device, *, plain: bool = False) -> Callable[[], Grey]:
    """Batches one after the other, copied when they are needed."""
    form = torch.contiguous_format if plain else torch.channels_last

    def run() -> Grey:
        found = []
        with torch.inference_mode():
            for start in range(0, len(grey), BATCH):
                part = torch.from_numpy(grey[start : start + BATCH, None]).to(device.torch_device)
                found.append(network(part.contiguous(memory_format=form))[:, 0].cpu().numpy())
        return np.concatenate(found)

    return run


def _resident(network: torch.nn.Module, grey: Grey, device: Device) -> Callable[[], Grey]:
    """What the copies cost: none is made while the network runs."""
    every = torch.from_numpy(grey[:, None]).to(device.torch_device)

    def run() -> Grey:
        with torch.inference_mode():
            parts = [
                network(every[start : start + BATCH].contiguous(memory_format=torch.channels_last))[:, 0]
                for start in range(0, len(every), BATCH)
            ]
            return torch.cat(parts).cpu().numpy()

    return run


def _graphed(network: torch.nn.Module, grey: Grey, device: Device) -> Callable[[], Grey]:
    """One graph of a whole batch; the last batch is filled up with its first slices."""
    shape = (BATCH, 1, *grey.shape[1:])
    given = torch.zeros(shape, dtype=torch.uint8, device=device.torch_device)
    stream = torch.cuda.Stream(device.torch_device)  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            network(given.contiguous(memory_format=torch.channels_last))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        made = network(given.contiguous(memory_format=torch.channels_last))[:, 0]

    def run() -> Grey:
        found = []
        for start in range(0, len(grey), BATCH):
            part = torch.from_numpy(np.resize(grey[start : start + BATCH, None], shape))
            given.copy_(part)
            graph.replay()
            found.append(made[: len(grey) - start].cpu().numpy())
        return np.concatenate(found)

    return run
