"""Tiny networks in three formats: each says "air" below 0.3 of the window, and "tissue" above."""

from pathlib import Path

import numpy as np

WINDOW_HU = (-1000.0, 1000.0)
AIR_BELOW_HU = -400
# Scores of (tissue, air) for a grey value x: (x, 0.6 - x).
WEIGHTS, BIAS = (1.0, -1.0), (0.0, 0.6)


def write_torchscript(path: Path) -> Path:
    import torch

    torch.jit.trace(_convolution(), torch.zeros(1, 1, 2, 2, 2)).save(path)
    return path


def write_onnx(path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 1, 1, 1, 1], WEIGHTS)
    bias = helper.make_tensor("b", TensorProto.FLOAT, [2], BIAS)
    shape = [1, None, None, None, None]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weights, bias],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def write_bundle(folder: Path, spacing_mm: tuple[float, float, float]) -> Path:
    """A bundle folder, written by MONAI."""
    import torch
    from monai.bundle.scripts import init_bundle

    network = _convolution()
    torch.save(network.state_dict(), folder.with_suffix(".pt"))
    init_bundle(
        folder, folder.with_suffix(".pt"), network=None, metadata_str=METADATA, inference_str=inference(spacing_mm)
    )
    return folder


def _convolution():
    import torch

    network = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor(WEIGHTS).reshape(2, 1, 1, 1, 1))
        network.bias.copy_(torch.tensor(BIAS))
    return network.eval()


METADATA = {"version": "0.1.0", "monai_version": "1.6.1", "task": "air", "description": "air below -400 HU"}


def inference(spacing_mm: tuple[float, float, float]) -> dict:
    """configs/inference.json as the bundles of the model zoo have it."""
    low, high = WINDOW_HU
    return {
        "imports": ["$import glob"],
        "bundle_root": "/workspace/bundle",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": list(spacing_mm), "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": low,
                    "a_max": high,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [48, 48, 32], "overlap": 0.25},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
            ],
        },
        "run": ["$@evaluator.run()"],
    }


def dice_with_air(mask: np.ndarray, hu: np.ndarray) -> float:
    """Dice of a mask and the air of a volume."""
    air = hu < AIR_BELOW_HU
    return 2.0 * float((mask & air).sum()) / float(mask.sum() + air.sum())
