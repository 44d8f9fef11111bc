"""DeCoVNet: Table 1's shapes, its size, and the form that streams a volume in parts."""

import numpy as np
import pytest
import torch

from inference.covid.decovnet import PARAMETERS, DeCoVNet, use_statistics
from inference.covid.streamed import StreamedDecovnet
from inference.device import Device


@pytest.fixture
def network() -> DeCoVNet:
    torch.manual_seed(0)
    decovnet = DeCoVNet("batch")
    with torch.no_grad():
        for name, tensor in [*decovnet.named_parameters(), *decovnet.named_buffers()]:
            if "bn" in name and tensor.dtype.is_floating_point:
                tensor.uniform_(0.5, 1.5)
        # A falling normalisation takes the other way through the stem's max-pool.
        decovnet.s1["pathway0_stem"].bn.weight[::3] *= -1
    return decovnet.eval()


def test_it_has_the_published_parameters_without_the_unused_stages(network: DeCoVNet) -> None:
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS == 838_242 - 491_264


def test_layers_have_the_sizes_of_table_1(network: DeCoVNet) -> None:
    with torch.inference_mode():
        stem = network.s1["pathway0_stem"](torch.zeros(1, 2, 6, 192, 288))
        first = network.s2["pathway0_res0"](stem)
        pooled = network.pool(first)
        second = network.s3["pathway0_res0"](pooled)
        sizes = [tuple(layer(second).shape[1:]) for layer in (network.head[:1], network.head[:4], network.head)]
    assert [tuple(x.shape[1:]) for x in (stem, first, pooled, second)] == [
        (16, 6, 48, 72),
        (64, 6, 48, 72),
        (64, 3, 48, 72),
        (128, 3, 24, 36),
    ]
    assert sizes == [(128, 16, 24, 36), (64, 4, 12, 18), (32, 1, 1, 1)]


def test_every_parameter_gets_a_gradient(network: DeCoVNet) -> None:
    network.train()
    network(torch.rand(1, 2, 8, 32, 48)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("slices", [2, 16, 35])
def test_streaming_gives_the_plain_networks_probability(network: DeCoVNet, statistics: str, slices: int) -> None:
    use_statistics(network, statistics)  # type: ignore[arg-type]
    random = np.random.default_rng(slices)
    image = random.integers(0, 256, (slices, 64, 96), dtype=np.uint8)
    mask = random.integers(0, 2, (slices, 64, 96), dtype=np.uint8)
    x = torch.from_numpy(np.stack([image / np.float32(255), mask.astype(np.float32)]))[None]
    with torch.inference_mode():
        wanted = float(torch.softmax(network(x), 1)[0, 1])
    found = StreamedDecovnet(network, Device("cpu", 0, "", 1)).probability(image, mask)
    assert found == pytest.approx(wanted, abs=2e-6)


def test_the_number_of_threads_does_not_change_a_bit(network: DeCoVNet) -> None:
    random = np.random.default_rng(1)
    image = random.integers(0, 256, (40, 64, 96), dtype=np.uint8)
    mask = random.integers(0, 2, (40, 64, 96), dtype=np.uint8)
    found = {StreamedDecovnet(network, Device("cpu", 0, "", n)).probability(image, mask) for n in (1, 2, 3)}
    assert len(found) == 1
