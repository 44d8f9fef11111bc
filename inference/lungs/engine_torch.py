"""The U-Net on the CPU through PyTorch alone: one slice per thread, any number of threads."""

import numpy as np
import torch

from inference.arrays import Grey
from inference.device import Device, workers
from inference.lungs.fused import fuse
from inference.lungs.unet import UNet
from inference.models.profile import Precision

_TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchUnet:
    """A `UnetEngine` on PyTorch's CPU operators.

    Every slice is computed by one thread, so the number of threads cannot change a mask.
    """

    def __init__(self, unet: UNet, device: Device, precision: Precision) -> None:
        self.name = f"torch {torch.__version__}"
        self.precision = precision
        self._fused = fuse(unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._threads = device.threads

    def masks(self, slices: Grey) -> Grey:
        """See `UnetEngine.masks`."""
        result = np.empty_like(slices)

        def compute(index: int) -> None:
            result[index] = self._mask(slices[index])

        with workers(self._threads) as pool:
            for _ in pool.map(compute, range(len(slices))):
                pass
        return result

    def _mask(self, grey: Grey) -> Grey:
        with torch.inference_mode(), torch.autocast("cpu", _TYPES[self.precision], self.precision != "float32"):
            mask: Grey = self._fused(torch.from_numpy(grey)[None, None])[0, 0].numpy()
        return mask
