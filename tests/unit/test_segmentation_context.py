"""The comparison of the 2.5D U-Net with the 2D one: what each slice sees, and the rule."""

import numpy as np
import torch

from benchmarks.segmentation_context import ContextUNet, clearly_better, near_ends, with_neighbours
from inference.lungs.unet import UNet


def test_each_slice_stands_between_the_ones_below_and_above_it() -> None:
    grey = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 2, 2)
    assert with_neighbours(grey)[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_without_weights_for_the_neighbours_it_is_the_2d_network() -> None:
    torch.manual_seed(0)
    flat, context = UNet().eval(), ContextUNet().eval()
    weights = flat.state_dict()
    weights["inc.double_conv.0.weight"] = torch.zeros(16, 3, 3, 3)
    weights["inc.double_conv.0.weight"][:, 1:2] = flat.state_dict()["inc.double_conv.0.weight"]
    context.load_state_dict(weights)
    grey = torch.rand(3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(context(with_neighbours(grey)[:, None]), flat(grey[:, None]), rtol=1e-4, atol=1e-5)


def test_the_ends_reach_as_many_millimetres_out_of_the_lung_as_into_it() -> None:
    truth = np.zeros((20, 2, 2), bool)
    truth[5:15] = True
    assert np.flatnonzero(near_ends(truth, 10.0)).tolist() == [4, 5, 6, 13, 14, 15]


def test_a_gain_counts_only_where_it_is_larger_than_that_of_another_seed() -> None:
    rng = np.random.default_rng(1)
    flat = 0.95 + 0.01 * rng.random((2, 60))
    assert clearly_better(flat, flat + 0.01)
    assert not clearly_better(flat, flat)
    assert not clearly_better(flat, flat - 0.01)
    assert not clearly_better(flat + np.array([[0.0], [0.02]]), flat + np.array([[0.01], [0.03]]))
    worst = flat + 0.01
    worst[:, 0] -= 0.05
    assert not clearly_better(flat, worst)
