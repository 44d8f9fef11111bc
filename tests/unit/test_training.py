"""Learning: it can, it can be stopped and resumed, and the same seed teaches the same."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.anatomy.unsupervised import unsupervised_mask
from inference.covid.decovnet import DeCoVNet
from inference.errors import ModelError
from inference.evaluation.overlap import dice
from inference.lungs.unet import UNet
from inference.phantom.chest import make_phantom
from inference.training.augmentation import AugmentationSettings, Change, draw, jitter, warp
from inference.training.dataset import LabelledCase, UnusableLabels, read_labels, split_by_date, split_by_seed
from inference.training.decovnet_training import VolumeCase, VolumeTask, roc_auc
from inference.training.loop import Score, TrainingSettings, freeze_statistics, train
from inference.training.lung_masks import failures
from inference.training.unet_training import LungCase, LungTask

STILL = AugmentationSettings(0, 0, 0, 0, 0, 0)


def lung_case(seed: int, size: int = 32) -> LungCase:
    lungs = torch.zeros(4, size, size, dtype=torch.uint8)
    lungs[:, 8:20, 4 + seed : 14 + seed] = 1
    noise = torch.randint(0, 40, lungs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return LungCase(str(seed), 200 - 150 * lungs + noise, lungs)


def volume_case(covid: bool) -> VolumeCase:
    lungs = torch.zeros(4, 32, 48, dtype=torch.uint8)
    lungs[:, 8:24, 8:40] = 1
    grey = 200 - 150 * lungs
    if covid:
        grey[:, 18:24, 10:18] = 160
    return VolumeCase(str(covid), grey, lungs, covid)


def lung_task(settings: TrainingSettings) -> LungTask:
    torch.manual_seed(settings.seed)
    return LungTask(UNet(), [lung_case(1), lung_case(2)], [lung_case(3)], settings, slices_per_step=2)


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def stop_after(steps: int) -> Callable[[], bool]:
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= steps


def test_the_defaults_are_the_papers() -> None:
    settings, change = TrainingSettings(), AugmentationSettings()
    assert (settings.epochs, settings.learning_rate, settings.samples_per_step) == (100, 1e-5, 1)
    assert (settings.validation_share, settings.decay_share, settings.rise_samples) == (0.15, 0, 0)
    assert (change.rotation_degrees, change.translation_share, change.scale_share) == (10, 0.1, 0.2)
    assert (change.shear_degrees, change.brightness_share, change.contrast_share) == (10, 0.5, 0.3)


def test_the_unet_learns_one_batch_by_heart(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=60, learning_rate=1e-2, augmentation=STILL)
    torch.manual_seed(0)
    task = LungTask(UNet(), [lung_case(1)], [lung_case(1)], settings, slices_per_step=4)
    losses: list[float] = []
    best = train(task, settings, tmp_path, report=lambda epoch: losses.append(epoch.training_loss))
    assert losses[-1] < 0.02 < losses[0]
    assert best.metric > 0.99


def test_decovnet_learns_two_volumes_by_heart() -> None:
    torch.manual_seed(0)
    settings = TrainingSettings(augmentation=STILL)
    cases = [volume_case(False), volume_case(True)]
    task = VolumeTask(DeCoVNet(dropout=0), cases, cases, settings)
    task.network.train()
    optimizer = torch.optim.Adam(task.network.parameters(), lr=3e-4)
    losses = [1.0, 1.0]
    for step in range(60):
        loss = task.loss(step % 2, torch.Generator().manual_seed(step))
        losses[step % 2] = float(loss.detach())
        if max(losses) < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert max(losses) < 0.05


@pytest.mark.parametrize("network", ["unet", "decovnet"])
def test_every_parameter_gets_a_gradient(network: str) -> None:
    torch.manual_seed(0)
    settings = TrainingSettings()
    task = (
        lung_task(settings) if network == "unet" else VolumeTask(DeCoVNet(dropout=0), [volume_case(True)], [], settings)
    )
    order = task.order(torch.Generator().manual_seed(0))
    task.network.train()
    task.loss(order[0], torch.Generator().manual_seed(0)).backward()
    without = [name for name, p in task.network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in task.network.named_parameters() if "weight" in n
    )


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=2, learning_rate=1e-3)
    first, again, other = lung_task(settings), lung_task(settings), lung_task(replace(settings, seed=1))
    for number, task in enumerate((first, again)):
        train(task, settings, tmp_path / str(number))
    train(other, replace(settings, seed=1), tmp_path / "other")
    assert same(first.network, again.network)
    assert not same(first.network, other.network)


@pytest.mark.parametrize("killed_after", [1, 3, 4, 6])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, killed_after: int) -> None:
    settings = TrainingSettings(
        epochs=3, learning_rate=1e-3, samples_per_step=2, warm_statistics_share=0.6, rise_samples=5, decay_share=0.5
    )
    whole, killed, resumed = lung_task(settings), lung_task(settings), lung_task(replace(settings, seed=0))
    score = train(whole, settings, tmp_path / "whole")
    train(killed, settings, tmp_path / "parts", stop=stop_after(killed_after))
    torch.manual_seed(99)  # what a new process would have is another state of chance
    again = train(resumed, settings, tmp_path / "parts")
    assert same(whole.network, resumed.network)
    assert again == score


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=1, learning_rate=1e-3)
    train(lung_task(settings), settings, tmp_path)
    with pytest.raises(ModelError, match="other settings"):
        train(lung_task(settings), replace(settings, epochs=2), tmp_path)


def test_the_best_epoch_is_kept_and_equal_metrics_go_by_the_loss() -> None:
    scores = [Score(0.9, 0.5), Score(1.0, 0.4), Score(1.0, 0.2), Score(0.95, 0.1)]
    assert max(scores, key=lambda score: score.rank) == Score(1.0, 0.2)


def test_frozen_statistics_stay_and_are_used() -> None:
    torch.manual_seed(0)
    network = UNet().train()
    freeze_statistics(network)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    x = torch.rand(2, 1, 32, 32)
    trained = network(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert torch.allclose(trained, network.eval()(x), atol=1e-5)


def test_every_slice_of_a_volume_is_warped_alike() -> None:
    change = draw(AugmentationSettings(), torch.Generator().manual_seed(3))
    plane = torch.rand(1, 1, 24, 36)
    warped = warp(plane.repeat(5, 1, 1, 1), change)
    assert torch.allclose(warped, warped[:1].expand_as(warped))
    assert not torch.allclose(warped[:1], plane)


def test_no_change_leaves_the_volume_as_it_is() -> None:
    volume = torch.rand(3, 2, 20, 30)
    assert torch.allclose(warp(volume, Change()), volume, atol=1e-5)
    assert torch.allclose(jitter(volume, Change()), volume, atol=1e-6)


def test_a_shift_moves_by_its_share_and_a_quarter_turn_turns() -> None:
    plane = torch.zeros(1, 1, 20, 40)
    plane[..., 5, 10] = 1
    moved = warp(plane, Change(shift=(0.1, 0.2)))
    assert torch.nonzero(moved[0, 0] > 0.5).tolist() == [[9, 14]]
    square = torch.zeros(1, 1, 21, 21)
    square[..., 10, 15] = 1
    turned = warp(square, Change(rotation=np.pi / 2))
    assert torch.nonzero(turned[0, 0] > 0.5).tolist() == [[15, 10]]


def test_classes_are_balanced_by_repeating_the_smaller() -> None:
    cases = [volume_case(True)] + [volume_case(False)] * 5
    task = VolumeTask(DeCoVNet(), cases, [], TrainingSettings())
    order = task.order(torch.Generator().manual_seed(0))
    assert sorted(order) == [0] * 5 + [1, 2, 3, 4, 5]


def test_roc_auc_counts_ties_half() -> None:
    assert roc_auc([False, True], [0.1, 0.9]) == 1
    assert roc_auc([False, True], [0.5, 0.5]) == 0.5
    assert roc_auc([True, False, True, False], [0.9, 0.8, 0.7, 0.1]) == 0.75


@pytest.mark.parametrize(("seed", "lesions"), [(1, "none"), (2, "ground-glass"), (3, "mixed")])
def test_unsupervised_lungs_agree_with_the_truth(seed: int, lesions: str) -> None:
    phantom = make_phantom(seed, slices=30, size=160, lesions=lesions)
    mask = unsupervised_mask(phantom.hu, phantom.spacing_mm)
    assert dice(mask, phantom.lung_mask) > 0.96
    assert failures(mask, phantom.spacing_mm) == ()


def test_the_trachea_is_left_out_unless_airways_are_wanted() -> None:
    phantom = make_phantom(1, slices=40, size=192)
    without = unsupervised_mask(phantom.hu, phantom.spacing_mm)
    kept = unsupervised_mask(phantom.hu, phantom.spacing_mm, airways=True)
    assert not without[-2].any()
    assert kept.sum() >= without.sum()


def test_failed_masks_are_found() -> None:
    phantom = make_phantom(1, slices=30, size=96)
    half = phantom.lung_mask.copy()
    half[..., :48] = False
    assert any("one side" in sentence or "mL" in sentence for sentence in failures(half, phantom.spacing_mm))
    assert any("cut off" in sentence for sentence in failures(phantom.lung_mask[:15], phantom.spacing_mm))
    assert failures(np.zeros((3, 8, 8), bool), (1, 1, 1)) == ("The mask is empty.",)


def cases() -> list[LabelledCase]:
    return [LabelledCase(f"c{n}", f"p{n // 2}", n % 4 < 2, date(2020, 1, 1 + n // 2)) for n in range(40)]


def test_no_patient_is_in_two_parts() -> None:
    for split in (split_by_seed(cases(), seed=3), split_by_date(cases(), date(2020, 1, 15))):
        parts = [{case.patient for case in part} for part in (split.training, split.validation, split.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 20
        assert all({case.covid for case in part} == {True, False} for part in (split.training, split.test))


def test_a_patient_on_both_sides_of_the_date_is_refused() -> None:
    later = replace(cases()[0], case="again", date=date(2020, 2, 1))
    with pytest.raises(UnusableLabels, match="before and after"):
        split_by_date([*cases(), later], date(2020, 1, 15))


def test_labels_are_read_and_mistakes_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("case,label,date,patient\na,1,2020-01-02,p\nb,0,2020-01-03,\n")
    assert [(case.case, case.patient, case.covid) for case in read_labels(path)] == [
        ("a", "p", True),
        ("b", "b", False),
    ]
    path.write_text("case,label,date\na,2,2020-01-02\n")
    with pytest.raises(UnusableLabels, match="line 2: label"):
        read_labels(path)
    path.write_text("case,label\na,1\n")
    with pytest.raises(UnusableLabels, match="date"):
        read_labels(path)
