"""The U-Net: its size, its two normalisations and its fused form."""

import pytest
import torch

from inference.errors import ModelError
from inference.lungs.fused import fuse
from inference.lungs.unet import PARAMETERS, UNet


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    network = UNet("batch")
    for buffer in network.buffers():
        if buffer.dtype.is_floating_point:
            buffer.uniform_(0.5, 1.5)
    return network.eval()


def test_it_has_as_many_parameters_as_the_published_checkpoint(unet: UNet) -> None:
    assert sum(p.numel() for p in unet.parameters()) == PARAMETERS == 839_506


def test_every_parameter_of_the_convolutions_weights_gets_a_gradient(unet: UNet) -> None:
    unet.train()
    unet(torch.rand(2, 1, 32, 32)).square().mean().backward()
    without = [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_batch_statistics_are_those_of_the_one_slice_as_in_training_mode(unet: UNet) -> None:
    slices = torch.rand(3, 1, 32, 48)
    with torch.inference_mode():
        together = unet(slices)
        unet.train()
        one_by_one = torch.cat([unet(s[None]) for s in slices])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_a_size_that_four_halvings_do_not_divide_is_refused(unet: UNet) -> None:
    with pytest.raises(ModelError, match="multiples of 16"):
        unet(torch.rand(1, 1, 40, 32))


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_fused_network_gives_the_mask_of_the_plain_one(unet: UNet, statistics: str) -> None:
    from inference.lungs.unet import use_statistics

    use_statistics(unet, statistics)  # type: ignore[arg-type]
    grey = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        logits = unet(grey / 255)
        mask = fuse(unet)(grey)[:, 0].bool()
    margin = (logits[:, 1] - logits[:, 0]).abs() > 1e-4
    assert margin.float().mean() > 0.95
    assert torch.equal(mask[margin], (logits[:, 1] > logits[:, 0])[margin])
