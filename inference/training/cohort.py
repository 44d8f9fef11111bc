"""Phantoms to train on and to test with: two populations that differ in scanner and disease."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inference.phantom import LesionSettings, Phantom, Scanner, make_phantom
from inference.training.decovnet_training import VolumeCase
from inference.training.lung_masks import dice, failures, unsupervised_mask
from inference.training.preparation import DECOVNET_SIZE, UNET_SIZE, grey_values, resize
from inference.training.unet_training import LungCase

TEST_SEEDS_FROM = 1_000_000


@dataclass(frozen=True)
class Shapes:
    """sizes: rows and columns that phantoms are drawn with.  slices: range of their number."""

    sizes: tuple[int, ...]
    slices: tuple[int, int]


@dataclass(frozen=True)
class Prepared:
    """A phantom in 8-bit grey values, with its masks.

    grey: uint8 (Z, Y, X).  lungs: the unsupervised mask, truth: the true one, both as packed bits of that shape.
    learnable: the unsupervised mask passed its checks.  mask_dice: its overlap with the truth.
    """

    seed: int
    covid: bool
    lesions: str
    grey: Tensor
    lungs: Tensor
    truth: Tensor
    learnable: bool
    mask_dice: float

    def lung_case(self, device: torch.device) -> LungCase:
        """What the U-Net learns from."""
        lungs = torch.from_numpy(self.unpacked(self.lungs).view(np.uint8) * np.uint8(255)).to(device)
        grey = resize(self.grey.to(device), UNET_SIZE)
        return LungCase(str(self.seed), grey, (resize(lungs, UNET_SIZE) > 127).to(torch.uint8))

    def volume_case(self, lungs: Tensor) -> VolumeCase:
        """What DeCoVNet learns from, as the node makes it from the U-Net's mask on the phantom's own grid."""
        grey = resize(self.grey.to(lungs.device), DECOVNET_SIZE)
        return VolumeCase(str(self.seed), grey, resize(lungs, DECOVNET_SIZE), self.covid)

    def unpacked(self, bits: Tensor) -> npt.NDArray[np.bool_]:
        """A mask from its packed bits: (Z, Y, X)."""
        return np.unpackbits(bits.numpy())[: self.grey.numel()].reshape(self.grey.shape).astype(bool)


def draw_training_phantom(seed: int, shapes: Shapes) -> Phantom:
    """A phantom of the training population: every second one has COVID-19."""
    rng = np.random.default_rng((seed, 1))
    covid = seed % 2 == 1
    settings = LesionSettings(
        count=(4, 10), radius_mm=(12, 32), ground_glass_hu=(220, 450), peripheral=float(rng.uniform(0.6, 1))
    )
    scanner = Scanner(
        noise_hu=float(rng.uniform(6, 40)),
        blur_mm=float(rng.uniform(0.4, 1.3)),
        padding_hu=[None, -1024, -3024][int(rng.integers(3))],
        table=bool(rng.random() < 0.9),
        below_mm=float(rng.uniform(10, 60)),
        above_mm=float(rng.uniform(10, 40)),
    )
    return _draw(rng, seed, shapes, covid, settings, scanner)


def draw_test_phantom(seed: int, shapes: Shapes) -> Phantom:
    """A phantom of another population: other kernels, noise, fields of view and lesions than in training."""
    rng = np.random.default_rng((seed, 2))
    covid = seed % 2 == 1
    settings = LesionSettings(
        count=(4, 8), radius_mm=(14, 36), ground_glass_hu=(240, 400), consolidation_hu=(600, 780), peripheral=0.95
    )
    scanner = Scanner(
        noise_hu=float(rng.uniform(12, 55)),
        blur_mm=float(rng.uniform(0.3, 1.8)),
        padding_hu=[None, -2000][int(rng.integers(2))],
        field_mm=float(rng.uniform(330, 430)),
        below_mm=float(rng.uniform(20, 80)),
        above_mm=float(rng.uniform(15, 55)),
    )
    return _draw(rng, seed, shapes, covid, settings, scanner)


def _draw(
    rng: np.random.Generator, seed: int, shapes: Shapes, covid: bool, settings: LesionSettings, scanner: Scanner
) -> Phantom:
    lesions = str(rng.choice(["ground-glass", "ground-glass", "mixed", "consolidation"])) if covid else "none"
    # No confounders: a network that has minutes to learn is to show lesions or none, and claims no more.
    return make_phantom(
        seed,
        slices=int(rng.integers(shapes.slices[0], shapes.slices[1] + 1)),
        size=int(rng.choice(shapes.sizes)),
        lesions=lesions,
        lesion_settings=settings,
        scanner=scanner,
    )


def prepare(seed: int, shapes: Shapes) -> Prepared:
    """Make one phantom and its unsupervised mask."""
    draw = draw_test_phantom if seed >= TEST_SEEDS_FROM else draw_training_phantom
    phantom = draw(seed, shapes)
    mask = unsupervised_mask(phantom.hu, phantom.spacing_mm)
    return Prepared(
        seed=seed,
        covid=phantom.covid,
        lesions=phantom.lesions,
        grey=grey_values(phantom.hu),
        lungs=torch.from_numpy(np.packbits(mask)),
        truth=torch.from_numpy(np.packbits(phantom.lung_mask)),
        learnable=not failures(mask, phantom.spacing_mm),
        mask_dice=dice(mask, phantom.lung_mask),
    )


def _prepare_to_file(arguments: tuple[int, Shapes, Path]) -> Path:
    seed, shapes, folder = arguments
    path = folder / f"{seed}.pt"
    if not path.exists():
        partial = path.with_suffix(".partial")
        torch.save(vars(prepare(seed, shapes)), partial)
        partial.replace(path)
    return path


def prepare_all(
    seeds: list[int], shapes: Shapes, folder: Path, workers: int, say: Callable[[str], None]
) -> list[Prepared]:
    """Prepared phantoms in the order of `seeds`; kept in `folder`, so that a second run finds them there."""
    folder.mkdir(parents=True, exist_ok=True)
    started, done = time.monotonic(), []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for path in pool.map(_prepare_to_file, [(seed, shapes, folder) for seed in seeds]):
            done.append(Prepared(**torch.load(path, weights_only=True)))
            if len(done) % 50 == 0 or len(done) == len(seeds):
                say(f"phantoms {len(done)}/{len(seeds)}  {time.monotonic() - started:.0f} s")
    return done
