"""How the demonstration model is made: phantoms of two populations, and what DeCoVNet starts from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inference.anatomy.unsupervised import unsupervised_mask
from inference.covid.decovnet import COVID, DeCoVNet
from inference.evaluation.overlap import dice
from inference.lungs.unet import UNet
from inference.phantom.chest import make_phantom
from inference.training import demonstration
from inference.training.cohort import TEST, TRAINING, draw_phantom, prepare
from inference.training.decovnet_training import initialise
from inference.training.lesion_start import EDGES, Finder, centre, start_classifier, start_features

SMALL = replace(TRAINING, sizes=(64,), slices=(16, 18))


def volume(kind: str, seed: int = 0) -> torch.Tensor:
    """Two boxes of lung in tissue, (2, 12, 96, 144), with an opacity, a vessel or nothing in one of them."""
    generator = torch.Generator().manual_seed(seed)
    grey, lungs = torch.full((12, 96, 144), 0.69), torch.zeros(12, 96, 144)
    for side in (slice(8, 64), slice(80, 136)):
        grey[1:11, 8:88, side], lungs[1:11, 8:88, side] = 0.19, 1
    if kind == "opacity":
        grey[4:8, 38:58, 26:46] = 0.55
    if kind == "vessel":
        grey[1:11, 46:49, 34:37] = 0.69
    return torch.stack([grey + 0.01 * torch.randn(grey.shape, generator=generator), lungs])


def finder() -> Finder:
    torch.manual_seed(0)
    network = DeCoVNet("batch", 0.0)
    initialise(network)
    start_features(network)
    return Finder(network).eval()


def score(network: torch.nn.Module, x: torch.Tensor) -> float:
    with torch.inference_mode():
        logits = network(x[None])[0]
    return float(logits[COVID] - logits[0])


def highest_score(network: Finder, x: torch.Tensor) -> float:
    with torch.inference_mode():
        return float(network.score(network.network.features(x[None])).max())


def test_features_start_with_opacities_above_vessels_and_healthy_lung() -> None:
    network = finder().network
    with torch.inference_mode():
        for edges_count in (1, 2):  # the two larger of EDGES; with the smallest the lung's edge may show
            opacity, vessel, nothing = (
                float(network.features(volume(kind)[None])[0, len(EDGES) + edges_count].flatten().topk(8).values.mean())
                for kind in ("opacity", "vessel", "nothing")
            )
            assert opacity > max(vessel, nothing) + 0.2


def test_the_classifier_starts_with_the_finders_order() -> None:
    start = finder()
    volumes = [volume(kind, seed) for kind in ("nothing", "vessel", "opacity") for seed in range(2)]
    centre(start, volumes)
    scores = [score(start, x) for x in volumes]
    assert abs(np.mean(scores)) < 0.01 and abs(np.std(scores, ddof=1) - 1) < 0.01
    highest = [highest_score(start, x) for x in volumes]
    network = start_classifier(start).eval()
    found = [score(network, x) for x in volumes]
    assert np.corrcoef(highest, found)[0, 1] > 0.9


def test_each_population_is_its_own_and_every_second_phantom_is_ill() -> None:
    one, other = (draw_phantom(replace(site, sizes=(64,), slices=(16, 18)), 3) for site in (TRAINING, TEST))
    assert one.covid and other.covid and not draw_phantom(SMALL, 4).covid
    assert one.scanner.blur_mm != other.scanner.blur_mm
    assert not any(
        low <= TRAINING.kernels[0].blur_mm[1] and TRAINING.kernels[0].blur_mm[0] <= high
        for low, high in (kernel.blur_mm for kernel in TEST.kernels)
    )


def test_a_prepared_phantom_holds_its_masks() -> None:
    prepared = prepare(SMALL, 1)
    phantom = draw_phantom(SMALL, 1)
    assert np.array_equal(prepared.unpacked(prepared.truth), phantom.lung_mask)
    assert dice(prepared.unpacked(prepared.unsupervised), phantom.lung_mask) > 0.9


def test_the_dome_of_the_diaphragm_and_the_heart_are_no_holes_of_the_lung() -> None:
    phantom = make_phantom(5, slices=60, size=128)
    mask = unsupervised_mask(phantom.hu, phantom.spacing_mm)
    extra = mask & ~phantom.lung_mask
    assert max(plane.sum() for plane in extra) * phantom.spacing_mm[1] ** 2 < 1500


def test_the_whole_making_runs_and_goes_on_from_its_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--tiny", "--threads", "1"]
    demonstration.main(arguments)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test"]["volumes"] == 4 and 0 <= metrics["test"]["roc_auc"] <= 1
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 5
    UNet().load_state_dict(load_file(tmp_path / "unet.safetensors"))
    first = load_file(tmp_path / "decovnet.safetensors")
    DeCoVNet().load_state_dict(first)
    capsys.readouterr()
    demonstration.main(arguments)
    assert "epoch" not in capsys.readouterr().out
    second = load_file(tmp_path / "decovnet.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
