"""The U-Net on the CPU through OpenVINO, an optional extra: one slice per thread, any number of threads."""

from collections.abc import Iterator

import numpy as np
import openvino as ov
import torch

from inference.arrays import Grey
from inference.device import Device
from inference.lungs.fused import fuse
from inference.lungs.unet import UNet
from inference.models.profile import Precision

_NAMES: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class OpenvinoUnet:
    """A `UnetEngine` on OpenVINO's CPU plug-in.

    Every slice is computed by one thread, so the number of threads cannot change a mask.
    """

    def __init__(self, unet: UNet, device: Device, precision: Precision) -> None:
        self.name = f"openvino {ov.__version__.split('-')[0]}"
        self.precision = precision
        self._fused = fuse(unet)
        self._threads = device.threads
        self._queues: dict[tuple[int, ...], ov.AsyncInferQueue] = {}

    def masks(self, slices: Grey) -> Grey:
        """See `UnetEngine.masks`."""
        result = np.empty_like(slices)
        queue = self._queue(slices.shape[1:])

        def keep(request: ov.InferRequest, index: int) -> None:
            result[index] = request.get_output_tensor().data[0, 0]

        queue.set_callback(keep)
        for index, grey in _inputs(slices):
            queue.start_async({0: grey}, index)
        queue.wait_all()
        return result

    def _queue(self, size: tuple[int, ...]) -> ov.AsyncInferQueue:
        """Requests for slices of one size; compiled for the first such slice."""
        if size not in self._queues:
            example = torch.zeros((1, 1, *size), dtype=torch.uint8)
            model = ov.convert_model(self._fused, example_input=example, input=[((1, 1, *size), ov.Type.u8)])
            compiled = ov.Core().compile_model(model, "CPU", self._options())
            self._queues[size] = ov.AsyncInferQueue(compiled, self._threads)
        return self._queues[size]

    def _options(self) -> dict[str, object]:
        return {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": self._threads,
            "INFERENCE_PRECISION_HINT": _NAMES[self.precision],
            "ENABLE_HYPER_THREADING": True,
        }


def _inputs(slices: Grey) -> Iterator[tuple[int, Grey]]:
    for index in range(len(slices)):
        yield index, slices[index : index + 1, None]
