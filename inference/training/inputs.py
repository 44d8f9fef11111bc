"""The inputs of both networks, made once by the node's own functions and then read from disk as they are needed.

Arrays are .npy files, so that a slice can be read without its volume; the operating system caches them.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inference.arrays import Grey
from inference.covid.card import ZhengCard
from inference.covid.decovnet import DeCoVNet
from inference.covid.loading import pipeline_of
from inference.covid.verdict_input import decovnet_input, resized
from inference.device import Device
from inference.errors import UnsuitableSeries
from inference.lungs.unet import UNet
from inference.models.toml_fields import plain
from inference.preprocess import resize_slices, verdict_range
from inference.training.cached import CachedCase, Dataset
from inference.training.decovnet_training import VolumeCase
from inference.training.parallel import Team
from inference.training.unet_training import LungCase

PREPARED = "prepared"


@dataclass(frozen=True)
class Refused:
    """A case that DeCoVNet cannot learn from, and why."""

    case: str
    sentence: str


def lung_cases(
    dataset: Dataset, cases: Sequence[CachedCase], team: Team, done: Callable[[int, int], None]
) -> list[LungCase]:
    """What the U-Net learns from: grey values and unsupervised masks at the network's size."""
    unet = dataset.profile.unet
    folder = _folder(dataset, "unet", [list(unet.size), unet.interpolation_order])

    def make(case: CachedCase) -> tuple[Grey, Grey]:
        grey, lungs = dataset.volume(case)
        size, order = unet.size, unet.interpolation_order
        shares = resize_slices(lungs.view(np.uint8) * np.uint8(255), size, order)
        return resize_slices(grey, size, order), (shares > 127).view(np.uint8)

    _make_all(folder, cases, make, team, done)
    return [LungCase(case.case, *_pair(folder, case)) for case in cases]


def volume_cases(
    dataset: Dataset,
    cases: Sequence[CachedCase],
    card: ZhengCard,
    unet: UNet | None,
    device: Device,
    team: Team,
    done: Callable[[int, int], None],
) -> tuple[list[VolumeCase], list[Refused]]:
    """What DeCoVNet learns from: image and the U-Net's mask, exactly as the node hands them to it.

    card: gives the profile.  unet: the trained network, in evaluation mode, on the CPU, with the digest in the card;
        None takes the unsupervised masks.
    """
    folder = _folder(dataset, "decovnet", [plain(card.profile), card.unet.sha256 if unet else "unsupervised"])
    # The node's own way from grey values to masks; its DeCoVNet is not used.
    pipeline = pipeline_of(card, unet, DeCoVNet().eval(), device) if unet else None

    def make(case: CachedCase) -> tuple[Grey, Grey]:
        grey, unsupervised = dataset.volume(case)
        lungs: Grey = unsupervised.view(np.uint8)
        if pipeline:
            start, stop = verdict_range(len(grey), card.profile.slices)
            lungs = pipeline.segmentation.raw_masks(grey, np.arange(start, stop, dtype=np.intp))
        return resized(*decovnet_input(grey, lungs, card.profile), card.profile)

    _make_all(folder, cases, make, team, done)
    refused = [
        Refused(case.case, _refusal(folder, case).read_text()) for case in cases if _refusal(folder, case).exists()
    ]
    names = {entry.case for entry in refused}
    kept = [case for case in cases if case.case not in names]
    return [VolumeCase(case.case, *_pair(folder, case), case.covid) for case in kept], refused


def _folder(dataset: Dataset, network: str, of: object) -> Path:
    """One folder for each kind of preparation, so that runs share the inputs that they have in common."""
    key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
    folder = dataset.folder / PREPARED / f"{network}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make_all(
    folder: Path,
    cases: Sequence[CachedCase],
    make: Callable[[CachedCase], tuple[Grey, Grey]],
    team: Team,
    done: Callable[[int, int], None],
) -> None:
    own = team.share(cases)
    for number, case in enumerate(own, 1):
        paths = [_path(folder, case, part) for part in ("grey", "lungs")]
        if not all(path.exists() for path in paths) and not _refusal(folder, case).exists():
            try:
                for path, array in zip(paths, make(case), strict=True):
                    _save(path, array)
            except UnsuitableSeries as error:
                _refusal(folder, case).write_text(str(error))
        done(number, len(own))
    team.wait()


def _path(folder: Path, case: CachedCase, part: str) -> Path:
    return folder / f"{Path(case.file).stem}-{case.sha256[:12]}-{part}.npy"


def _refusal(folder: Path, case: CachedCase) -> Path:
    return folder / f"{Path(case.file).stem}-{case.sha256[:12]}.refused"


def _save(path: Path, array: Grey) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)


def _pair(folder: Path, case: CachedCase) -> tuple[Tensor, Tensor]:
    return mapped(_path(folder, case, "grey")), mapped(_path(folder, case, "lungs"))


def mapped(path: Path) -> Tensor:
    """A .npy file as a tensor whose parts are read when they are used; not to be written to."""
    with warnings.catch_warnings():
        # The file is mapped read-only, and nothing writes to the tensor.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.load(path, mmap_mode="r", allow_pickle=False))
