"""One small interface to the back ends that run the U-Net, and the choice among them."""

from importlib.util import find_spec
from typing import Literal, Protocol

from inference.arrays import Grey
from inference.device import Device
from inference.errors import ModelError
from inference.lungs.unet import UNet
from inference.models.profile import Precision

BackEnd = Literal["auto", "native", "openvino", "torch"]


class UnetEngine(Protocol):
    """A U-Net ready to run.

    name: back end and version, for the finding.  precision: number format of its convolutions.
    """

    name: str
    precision: Precision

    def masks(self, slices: Grey) -> Grey:
        """Lung masks of grey slices, 1 in the lung: both uint8 (N, H, W).

        The mask of a slice depends on that slice alone: not on its neighbours, the batch or the threads.
        """


def open_unet(unet: UNet, device: Device, precision: Precision, back_end: BackEnd = "auto") -> UnetEngine:
    """The fastest engine that is installed for a device.

    unet: in evaluation mode, on the CPU.
    Raises ModelError when the requested back end is not installed or cannot drive the device.
    """
    if back_end == "auto":
        back_end = _fastest(device, precision)
    if back_end == "native":
        from inference.lungs.engine_native import NativeUnet

        if device.kind != "cpu":
            raise ModelError("the native engine runs on the CPU")
        return NativeUnet(unet, device, precision)
    if back_end == "openvino":
        if device.kind != "cpu" or not find_spec("openvino"):
            raise ModelError("the OpenVINO engine needs the package openvino and runs on the CPU")
        from inference.lungs.engine_openvino import OpenvinoUnet

        return OpenvinoUnet(unet, device, precision)
    if device.kind == "cuda":
        from inference.lungs.engine_cuda import CudaUnet

        return CudaUnet(unet, device, precision)
    from inference.lungs.engine_torch import TorchUnet

    return TorchUnet(unet, device, precision)


def _fastest(device: Device, precision: Precision) -> BackEnd:
    if device.kind != "cpu":
        return "torch"
    from inference.lungs.engine_native import can_run

    if can_run(precision):
        return "native"
    return "openvino" if find_spec("openvino") else "torch"


def cpu_runs(precision: Precision) -> bool:
    """True if this CPU computes in the number format rather than emulating it slowly."""
    if precision == "float32":
        return True
    return precision == "bfloat16" and "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.split())
    except OSError:
        pass
    return frozenset()
