"""The U-Net on the CPU through the project's own C code: one slice per thread, any number of threads."""

import ctypes
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch

from inference.arrays import Grey
from inference.device import Device, workers
from inference.errors import ModelError
from inference.lungs import native
from inference.lungs.fused import FusedConv, FusedUnet, fuse
from inference.lungs.unet import UNet
from inference.models.profile import Precision

Float = npt.NDArray[np.float32]

# Winograd's transform of a 3x3 kernel for tiles of 4x4 outputs: G g G^T.
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float64) / 24
_ALIGNMENT = 64


class NativeUnet:
    """A `UnetEngine` on `inference/lungs/native`.

    Every slice is computed by one thread, so the number of threads cannot change a mask.
    """

    def __init__(self, unet: UNet, device: Device, precision: Precision, kind: native.Kind | None = None) -> None:
        """kind: instruction set; None means the best one available."""
        kind = kind or kind_for(precision)
        if kind not in native.available() or not can_run(precision):
            raise ModelError(f"the native U-Net does not compute {precision} ({kind}) on this processor")
        self.name = f"native {kind}"
        self.precision = precision
        self._threads = device.threads
        self._kind = native.KINDS.index(kind)
        self._kept: list[Float] = []
        self._network = self._packed(fuse(unet))

    def masks(self, slices: Grey) -> Grey:
        """See `UnetEngine.masks`."""
        slices = np.ascontiguousarray(slices)
        result = np.empty_like(slices)
        library = native.library()
        if library is None:
            raise ModelError("the native U-Net is not built")
        height, width = slices.shape[1:]
        workspaces: SimpleQueue[Float] = SimpleQueue()
        for _ in range(min(self._threads, len(slices))):
            workspaces.put(_room(library.unet_workspace(height, width)))

        def compute(index: int) -> None:
            workspace = workspaces.get()
            failed = library.unet_mask(
                self._kind,
                ctypes.byref(self._network),
                slices[index].ctypes.data,
                height,
                width,
                result[index].ctypes.data,
                workspace.ctypes.data,
            )
            workspaces.put(workspace)
            if failed:
                raise ModelError(f"the native U-Net cannot compute slices of {height} x {width}: multiples of 16 only")

        with workers(self._threads) as pool:
            for _ in pool.map(compute, range(len(slices))):
                pass
        return result

    def _packed(self, fused: FusedUnet) -> native.Network:
        network = native.Network()
        blocks = [*fused.down, *fused.up]
        for number, conv in enumerate(conv for block in blocks for conv in block):
            network.layers[number] = self._layer(conv)
        network.last_weights = self._keep(fused.last.weight.detach().numpy().reshape(-1))
        network.last_bias = float(fused.last.bias.item())  # type: ignore[union-attr]
        return network

    def _layer(self, conv: FusedConv) -> native.Layer:
        weight = conv.weight.detach().numpy()
        outputs, inputs = weight.shape[:2]
        scale, shift = conv.gamma.detach().numpy().reshape(-1), conv.beta.detach().numpy().reshape(-1)
        if not conv.per_slice:
            scale, shift = np.ones(outputs, np.float32), conv.bias.detach().numpy()
        lanes = native.LANES[native.KINDS[self._kind]]
        packed = weight.reshape(outputs, 9).T if inputs == 1 else _transformed(weight, self.precision, lanes)
        return native.Layer(
            weights=self._keep(packed),
            gamma=self._keep(scale),
            beta=self._keep(shift),
            eps=conv.eps,
            inputs=inputs,
            outputs=outputs,
            per_slice=int(conv.per_slice),
        )

    def _keep(self, array: npt.NDArray[np.generic]) -> int:
        """The address of a copy that begins on a 64-byte boundary and is kept as long as this engine."""
        self._kept.append(_aligned(np.ascontiguousarray(array).view(np.float32)))
        return int(self._kept[-1].ctypes.data)


def kind_for(precision: Precision) -> native.Kind:
    """The instruction set for a number format: the widest available."""
    if precision == "bfloat16":
        return "avx512_bf16"
    return "avx512" if "avx512" in native.available() else "avx2"


def can_run(precision: Precision) -> bool:
    """True if this machine has the C code, and instructions for the number format."""
    return precision != "float16" and kind_for(precision) in native.available()


def _transformed(weight: Float, precision: Precision, lanes: int) -> npt.NDArray[np.generic]:
    """Kernels (outputs, inputs, 3, 3) in the order in which `unet_kernel.h` reads them.

    lanes: float32 numbers per vector.
    [36][outputs / n][inputs][n], n at most 2 vectors; in bfloat16 [36][outputs / n][inputs / 2][n / 16][16][2].
    """
    outputs, inputs = weight.shape[:2]
    together = min(2 * lanes, outputs)
    kernels = np.einsum("ai,ocij,bj->abco", _G, weight.astype(np.float64), _G)
    kernels = kernels.reshape(36, inputs, outputs // together, together).transpose(0, 2, 1, 3)
    if precision != "bfloat16":
        return np.ascontiguousarray(kernels, np.float32)
    pairs = kernels.reshape(36, outputs // together, inputs // 2, 2, together // 16, 16).transpose(0, 1, 2, 4, 5, 3)
    rounded = torch.from_numpy(np.ascontiguousarray(pairs, np.float32)).bfloat16()
    return rounded.view(torch.int16).numpy()


def _aligned(array: Float) -> Float:
    """A copy of the array, flat, on a 64-byte boundary."""
    result = _room(array.size)
    result[:] = array.reshape(-1)
    return result


def _room(size: int) -> Float:
    """Memory for float32 numbers, on a 64-byte boundary."""
    room = np.empty(size + _ALIGNMENT // 4, np.float32)
    start = -room.ctypes.data % _ALIGNMENT // 4
    return room[start : start + size]
