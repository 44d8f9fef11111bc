"""What becomes of a volume if a GPU's memory runs out, or the GPU fails in mid-run."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from inference.arrays import Grey
from inference.covid.loading import load_pipeline
from inference.device import Device, choose_device
from inference.errors import DeviceLost
from inference.lungs.engine_cuda import CudaUnet
from inference.lungs.unet import UNet
from inference.models.cards import shipped_folder
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from inference.volume.ct_volume import CTVolume
from inference.volume.load import load

DEMONSTRATION = shipped_folder() / "demonstration"
FEW = 24


def exhaustion(unet: UNet, grey: Grey, device: Device) -> None:
    """Print the U-Net's peak, and what it does with less memory than that, of which it knows or not."""
    torch.cuda.reset_peak_memory_stats(device.torch_device)
    wanted = CudaUnet(unet, device, "float32").masks(grey)[:FEW]
    peak = torch.cuda.max_memory_allocated(device.torch_device)
    print(f"peak of the U-Net with {len(grey)} slices: {peak / 2**20:.0f} MiB\n")
    print("| memory, MiB | how short | batches of | masks |\n|---|---|---|---|")
    for short in (limited, filled):
        for allowed_mb in (2048, 512, 256, 64):
            torch.cuda.empty_cache()
            try:
                with short(device, allowed_mb):
                    engine = CudaUnet(unet, device, "float32")
                    differing = int(np.sum(engine.masks(grey[:FEW]) != wanted))
                said = f"{engine._batch} | {f'{differing} pixels differ' if differing else 'the same'}"
            except RuntimeError as error:
                said = f"none | left to the CPU: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
            print(f"| {allowed_mb} | {short.__name__} | {said} |")


@contextlib.contextmanager
def limited(device: Device, allowed_mb: int) -> Iterator[None]:
    """A limit that the engine does not see: it tries, and fails."""
    total = torch.cuda.get_device_properties(device.index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed_mb * 2**20 / total), device.index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)


@contextlib.contextmanager
def filled(device: Device, allowed_mb: int) -> Iterator[None]:
    """A card that is full but for this: the engine sees it, and libraries that allocate for themselves fail too."""
    free, _ = torch.cuda.mem_get_info(device.torch_device)
    held = torch.empty(max(0, free - allowed_mb * 2**20), dtype=torch.uint8, device=device.torch_device)
    try:
        yield
    finally:
        del held


def chest(slices: int) -> CTVolume:
    """A phantom that the shipped demonstration model accepts."""
    with tempfile.TemporaryDirectory() as folder:
        return load(write_series(make_phantom(3, slices=slices, size=256, lesions="none"), Path(folder)))


def taken_over(device: str) -> None:
    """Print who computes a volume on a card that is full."""
    pipeline, volume = load_pipeline(DEMONSTRATION, device), chest(40)
    print(f"\na chest with memory: {pipeline.run(volume).device}")
    torch.cuda.empty_cache()
    with filled(choose_device(device), 16):
        print(f"the same on a card that is full: {pipeline.run(volume).device}")
    print(f"and after that: {pipeline.run(volume).device}")


def lost(device: str) -> None:
    """Let a kernel fail, which makes a GPU useless to this process as one that falls off the bus, and go on with it."""
    pipeline, volume, chosen = load_pipeline(DEMONSTRATION, device), chest(40), choose_device(device)
    print(f"before: {pipeline.run(volume).device}")
    with contextlib.suppress(RuntimeError):
        index = torch.tensor([7], device=chosen.torch_device)
        print(torch.zeros(1, device=chosen.torch_device)[index].cpu())  # an index that is not there
    try:
        print(f"after: NOT NOTICED, {pipeline.run(volume).device}")
    except DeviceLost as error:
        print(f"after: DeviceLost: {error} (cause: {type(error.__cause__).__name__}). A worker ends then")
