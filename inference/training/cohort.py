"""Phantoms for training and testing: two populations from different scanners."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inference.anatomy.unsupervised import unsupervised_mask
from inference.arrays import Grey, Mask
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.lesions import CONFOUNDERS, LesionSettings
from inference.preprocess import greys
from inference.training.demonstration_card import PROFILE
from inference.training.lung_masks import failures
from inference.volume.ct_volume import CTVolume

Range = tuple[float, float]


@dataclass(frozen=True)
class Kernel:
    """A reconstruction: the ranges of its blur (sigma, mm) and of the noise after it (HU)."""

    blur_mm: Range
    noise_hu: Range


@dataclass(frozen=True)
class Population:
    """The ranges from which the phantoms of one site are drawn.

    field_mm: width of the field of view; None fits it to each body.  padding_hu: outside the circle, see `Scanner`.
    slices: range of the number of slices over the whole chest.  sizes: rows and columns.
    peripheral: range of the share of foci at the pleura.
    confounder_share: how often each of CONFOUNDERS occurs, equally in both classes.
    """

    key: int
    kernels: tuple[Kernel, ...]
    padding_hu: tuple[int | None, ...]
    field_mm: Range | None
    below_mm: Range
    above_mm: Range
    slices: tuple[int, int]
    sizes: tuple[int, ...]
    lesions: LesionSettings
    peripheral: Range
    confounder_share: float = 0.3


TRAINING = Population(
    key=1,
    kernels=(Kernel((0.5, 1.1), (6, 30)),),
    padding_hu=(None, -1024, -3024),
    field_mm=None,
    below_mm=(10, 60),
    above_mm=(10, 40),
    slices=(32, 64),
    sizes=(192,),
    lesions=LesionSettings(count=(3, 10), radius_mm=(10, 30), ground_glass_hu=(150, 450), consolidation_hu=(550, 900)),
    peripheral=(0.6, 1.0),
)
# Kernels, noise, fields of view, matrices and slice numbers that do not occur in the training population.
TEST = Population(
    key=2,
    kernels=(Kernel((0.3, 0.45), (20, 50)), Kernel((1.3, 1.8), (5, 20))),
    padding_hu=(None, -2000),
    field_mm=(340, 430),
    below_mm=(20, 80),
    above_mm=(15, 55),
    slices=(28, 96),
    sizes=(256, 320),
    lesions=LesionSettings(),
    peripheral=(0.85, 0.85),
)


def draw_phantom(population: Population, seed: int) -> Phantom:
    """One phantom of a population. Every second phantom has COVID-19, from faint ground glass to consolidation."""
    rng = np.random.default_rng((seed, population.key))
    covid = seed % 2 == 1
    kernel = population.kernels[int(rng.integers(len(population.kernels)))]
    lesions = str(rng.choice(["ground-glass", "ground-glass", "mixed", "consolidation"])) if covid else "none"
    settings = vars(population.lesions) | {"peripheral": float(rng.uniform(*population.peripheral))}
    return make_phantom(
        seed * 2 + population.key % 2,
        slices=int(rng.integers(population.slices[0], population.slices[1] + 1)),
        size=int(rng.choice(population.sizes)),
        lesions=lesions,
        lesion_settings=LesionSettings(**settings),
        confounders=[name for name in CONFOUNDERS if rng.random() < population.confounder_share],
        scanner=Scanner(
            noise_hu=float(rng.uniform(*kernel.noise_hu)),
            blur_mm=float(rng.uniform(*kernel.blur_mm)),
            padding_hu=population.padding_hu[int(rng.integers(len(population.padding_hu)))],
            field_mm=float(rng.uniform(*population.field_mm)) if population.field_mm else None,
            below_mm=float(rng.uniform(*population.below_mm)),
            above_mm=float(rng.uniform(*population.above_mm)),
            table=bool(rng.random() < 0.9),
        ),
    )


@dataclass(frozen=True)
class Prepared:
    """A phantom in 8-bit grey values, as the node computes them.

    grey: uint8 (T, Y, X).  unsupervised, truth: lung masks on that grid, as packed bits.
    learnable: the unsupervised mask passed its checks.
    """

    seed: int
    covid: bool
    lesions: str
    confounders: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    grey: Tensor
    unsupervised: Tensor
    truth: Tensor
    learnable: bool

    def unpacked(self, bits: Tensor) -> Mask:
        """A mask from its packed bits: bool (T, Y, X)."""
        return np.unpackbits(bits.numpy())[: self.grey.numel()].reshape(self.grey.shape).astype(bool)


def volume_of(phantom: Phantom) -> CTVolume:
    """The phantom in the form that the node's preprocessing expects."""
    return CTVolume(phantom.hu, phantom.spacing_mm, np.eye(4), (), "", "")


def prepare(population: Population, seed: int) -> Prepared:
    """Make one phantom with its grey values, as the node computes them, and its unsupervised lung mask."""
    phantom = draw_phantom(population, seed)
    grey = greys(volume_of(phantom), PROFILE)
    mask = unsupervised_mask(hu_of(grey), phantom.spacing_mm)
    return Prepared(
        seed=seed,
        covid=phantom.covid,
        lesions=phantom.lesions,
        confounders=phantom.confounders,
        spacing_mm=phantom.spacing_mm,
        grey=torch.from_numpy(grey),
        unsupervised=torch.from_numpy(np.packbits(mask)),
        truth=torch.from_numpy(np.packbits(phantom.lung_mask)),
        learnable=not failures(mask, phantom.spacing_mm),
    )


def hu_of(grey: Grey) -> npt.NDArray[np.int16]:
    """For each grey value, the middle of the HU range that it stands for: int16, shaped like `grey`."""
    low, high = PROFILE.intensity.window_hu
    return (low + (grey.astype(np.float32) + 0.5) * (high - low) / 255).astype(np.int16)


def _prepare_to_file(arguments: tuple[Population, int, Path]) -> Path:
    population, seed, folder = arguments
    path = folder / f"{population.key}-{seed}.pt"
    if not path.exists():
        partial = path.with_suffix(".partial")
        torch.save(vars(prepare(population, seed)), partial)
        partial.replace(path)
    return path


def load_prepared(path: Path) -> Prepared:
    """Read one phantom that `prepare_all` kept."""
    return Prepared(**torch.load(path, weights_only=True))


def prepare_all(
    population: Population, count: int, folder: Path, workers: int, say: Callable[[str], None]
) -> list[Path]:
    """Files of the population's first `count` phantoms; those that `folder` does not hold yet are made."""
    folder.mkdir(parents=True, exist_ok=True)
    started, done = time.monotonic(), []
    wanted = [(population, seed, folder) for seed in range(count)]
    with ExitStack() as stack:
        prepared: Iterable[Path] = map(_prepare_to_file, wanted)
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
            prepared = pool.map(_prepare_to_file, wanted)
        for path in prepared:
            done.append(path)
            if len(done) % 50 == 0 or len(done) == count:
                say(f"phantoms {len(done)}/{count}  {time.monotonic() - started:.0f} s")
    return done
