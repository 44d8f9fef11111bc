"""The U-Net on a GPU through PyTorch: batches that fit its memory, copied while the last one computes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from inference.arrays import Grey
from inference.device import Device, lacked_memory
from inference.lungs.fused import fuse
from inference.lungs.unet import UNet
from inference.models.profile import Precision

_LARGEST_BATCH = 64
_TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Peak of one 512 x 512 slice: about nine 16-channel planes in float32 are alive at once in the widest layers.
_BYTES_PER_PIXEL = 9 * 16 * 4


class CudaUnet:
    """A `UnetEngine` on one GPU. Raises RuntimeError (see `device.lacked_memory`) if not even one slice fits.

    It also runs on a CPU, without pinned memory and streams, which is how its batches are tested.
    """

    def __init__(self, unet: UNet, device: Device, precision: Precision) -> None:
        self.name = f"torch {torch.__version__} cuda {torch.version.cuda}"
        self.precision = precision
        self._device = device.torch_device
        self._on_gpu = device.kind == "cuda"
        self._fused = fuse(unet).to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # One for all calls: the memory of what was copied on a stream is only used again on the same stream.
        self._copies = torch.cuda.Stream(self._device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._batch = _LARGEST_BATCH
        # Exact means float32 throughout: no TF32, and the same algorithm in every call.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True

    def masks(self, slices: Grey) -> Grey:
        """See `UnetEngine.masks`."""
        # Anew in each call: another process may have needed the memory only for a while.
        self._batch = self._fitting(slices)
        while True:
            try:
                return self._masks(slices, self._batch)
            except RuntimeError as error:
                if self._batch == 1 or not lacked_memory(error):
                    raise
            # Not in the handler: the error that it holds keeps what was computed on the GPU.
            torch.cuda.empty_cache()
            self._batch //= 2

    def _fitting(self, slices: Grey) -> int:
        """How many slices at once fit the free memory."""
        if not self._on_gpu:
            return _LARGEST_BATCH
        free, _ = torch.cuda.mem_get_info(self._device)
        free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        fits = int(0.8 * free) // (_BYTES_PER_PIXEL * int(slices[0].size))
        return max(1, min(_LARGEST_BATCH, fits))

    def _masks(self, slices: Grey, batch: int) -> Grey:
        result = torch.empty(slices.shape, dtype=torch.uint8, pin_memory=self._on_gpu)
        kind, lower = self._device.type, self.precision != "float32"
        with torch.inference_mode(), torch.autocast(kind, _TYPES[self.precision], lower):
            for start, part in self._uploads(slices, batch):
                mask = self._fused(part.contiguous(memory_format=torch.channels_last))[:, 0]
                result[start : start + len(mask)].copy_(mask, non_blocking=True)
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        return result.numpy()

    def _uploads(self, slices: Grey, batch: int) -> Iterator[tuple[int, Tensor]]:
        """Batches on the GPU, each copied on a stream of its own while the one before it computes."""
        if self._copies is None:
            for start in range(0, len(slices), batch):
                yield start, torch.from_numpy(slices[start : start + batch, None])
            return
        copies = self._copies
        computing = torch.cuda.current_stream(self._device)
        pinned = torch.from_numpy(np.ascontiguousarray(slices)).pin_memory()
        waiting: tuple[int, Tensor] | None = None
        for start in range(0, len(slices), batch):
            with torch.cuda.stream(copies):
                part = pinned[start : start + batch, None].to(self._device, non_blocking=True)
            if waiting:
                yield waiting
            computing.wait_stream(copies)
            part.record_stream(computing)
            waiting = (start, part)
        if waiting:
            yield waiting
