"""A data set on disk: grey values and unsupervised lung masks of every case, and a manifest that describes them.

    DIR/dataset.json       the manifest: settings, split, cases, what was left out and why
    DIR/volumes/0001.safetensors   grey: uint8 (T, Y, X); lungs: packed bits of that shape
    DIR/left-out.csv       cases without a volume, and why
    DIR/removed.txt        cases whose lung mask is not used for training: edit it by hand
    DIR/masks-001.png      contact sheets that help to decide which

All these files name cases as the labels do, so they stay at the site.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as read_arrays
from safetensors.numpy import save as array_bytes

from inference.arrays import Grey
from inference.errors import InferenceError, ModelError
from inference.models.profile import Profile
from inference.models.toml_fields import build, plain

MANIFEST, VOLUMES, LEFT_OUT, REMOVED = "dataset.json", "volumes", "left-out.csv", "removed.txt"
FORMAT = 1
Part = Literal["training", "validation", "test"]
PARTS: tuple[Part, ...] = ("training", "validation", "test")


class UnusableDataset(InferenceError):
    """A data set's folder cannot be used as it is."""


@dataclass(frozen=True)
class CachedCase:
    """One case of a data set.

    case: as named in the labels.  patient: a number that all cases of one patient share.  file, sha256: of its volume.
    shape: (T, Y, X) of the grey values.  spacing_mm: of the source volume, (z, y, x).
    volume_digest: of the source volume in HU.  covers: columns by which an evaluation can be split, such as scanner.
    mask_ml: of the unsupervised lung mask.  mask_failures: why it should not be trained on; empty for a good one.
    """

    case: str
    patient: int
    covid: bool
    date: str
    part: str
    file: str
    sha256: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    volume_digest: str
    mask_ml: float
    mask_failures: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A labelled case that is not in the data set. line: in the labels.  code: stable, such as "MISSING_SLICES"."""

    line: int
    case: str
    code: str
    sentence: str


@dataclass(frozen=True)
class Dataset:
    """A data set in its folder.

    profile: the preprocessing of its volumes.  split: how the parts were made, in words.
    labels_sha256: of the labels file.  unlabelled: series of the source that no label names.
    """

    folder: Path
    profile: Profile
    card: str
    split: str
    labels_sha256: str
    cases: tuple[CachedCase, ...]
    left_out: tuple[LeftOut, ...] = ()
    unlabelled: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)

    def part(self, name: str) -> list[CachedCase]:
        """The cases of a part, in the order of the labels."""
        return [case for case in self.cases if case.part == name]

    def digest(self) -> str:
        """SHA-256 hex of everything that training can use: volumes, labels and parts."""
        content = [[case.sha256, case.covid, case.part] for case in self.cases]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def removed(self) -> frozenset[str]:
        """Cases in removed.txt, whose lung mask is not used for training: one per line, with comments after #.

        Raises UnusableDataset for a name that is not a case.
        """
        try:
            lines = (self.folder / REMOVED).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return frozenset()
        known = {case.case for case in self.cases}
        found = set()
        for number, line in enumerate(lines, 1):
            name = line if line in known else line.partition("#")[0].strip()
            if name and name not in known:
                raise UnusableDataset(f"{self.folder / REMOVED}, line {number}: the data set has no such case")
            found.add(name)
        return frozenset(found - {""})

    def volume(self, case: CachedCase) -> tuple[Grey, npt.NDArray[np.bool_]]:
        """Grey values and unsupervised lung mask of a case: uint8 and bool (T, Y, X).

        Raises UnusableDataset when its file is missing or altered.
        """
        path = self.folder / VOLUMES / case.file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UnusableDataset(f"{path}: cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != case.sha256:
            raise UnusableDataset(f"{path}: altered; build the data set again")
        try:
            arrays = read_arrays(content)
        except SafetensorError as error:
            raise UnusableDataset(f"{path}: not a safetensors file") from error
        grey = arrays["grey"]
        lungs = np.unpackbits(arrays["lungs"], count=grey.size).reshape(grey.shape).astype(bool)
        return grey, lungs

    def save(self) -> None:
        """Write the manifest, replacing the old one atomically."""
        content = {
            "format": FORMAT,
            "card": self.card,
            "split": self.split,
            "labels_sha256": self.labels_sha256,
            "unlabelled": self.unlabelled,
            "settings": dict(self.settings),
            "profile": plain(self.profile),
            "cases": [asdict(case) for case in self.cases],
            "left_out": [asdict(case) for case in self.left_out],
        }
        replace_file(self.folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def write_volume(path: Path, grey: Grey, lungs: npt.NDArray[np.bool_]) -> str:
    """Write one case's volume; returns the file's SHA-256."""
    content = array_bytes({"grey": np.ascontiguousarray(grey), "lungs": np.packbits(lungs)})
    replace_file(path, content)
    return hashlib.sha256(content).hexdigest()


def is_dataset(folder: Path) -> bool:
    """True if this folder was made by `dataset build`."""
    return (folder / MANIFEST).is_file()


def open_dataset(folder: Path) -> Dataset:
    """The data set of a folder.

    Raises UnusableDataset if there is none, if its format is another one, or if a patient is in two of its parts.
    """
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnusableDataset(f"{folder} holds no {MANIFEST}: make it with `dicom-node dataset build`") from None
    except (OSError, ValueError) as error:
        raise UnusableDataset(f"{folder / MANIFEST}: cannot be read") from error
    if content.get("format") != FORMAT:
        raise UnusableDataset(f"{folder / MANIFEST}: of another version; build the data set again")
    try:
        cases = tuple(build(CachedCase, case, f"{MANIFEST} case") for case in content["cases"])
        left_out = tuple(build(LeftOut, case, f"{MANIFEST} left_out") for case in content["left_out"])
        profile = build(Profile, content["profile"], f"{MANIFEST} profile")
    except (KeyError, ModelError) as error:
        raise UnusableDataset(f"{folder / MANIFEST}: {error}") from error
    _check_cases(cases, folder)
    return Dataset(
        folder, profile, content["card"], content["split"], content["labels_sha256"], cases, left_out,
        content["unlabelled"], content["settings"],
    )  # fmt: skip


def _check_cases(cases: tuple[CachedCase, ...], folder: Path) -> None:
    part_of: dict[int, set[str]] = {}
    for case in cases:
        part_of.setdefault(case.patient, set()).add(case.part)
        if Path(case.file).name != case.file or case.part not in PARTS:
            raise UnusableDataset(f"{folder / MANIFEST}: a case has no plain file name, or an unknown part")
    shared = sum(len(parts) > 1 for parts in part_of.values())
    if shared:
        raise UnusableDataset(f"{folder / MANIFEST}: {shared} patients are in two parts of the split")


def summary(dataset: Dataset) -> dict[str, object]:
    """What a card says about the data: figures that name no case and no patient."""
    dates = sorted(date.fromisoformat(case.date) for case in dataset.cases)
    parts = {name: dataset.part(name) for name in PARTS}
    return {
        "digest": dataset.digest(),
        "split": dataset.split,
        "first_date": str(dates[0]),
        "last_date": str(dates[-1]),
        "left_out": len(dataset.left_out),
        "masks_removed": len(dataset.removed()),
        **{
            name: {
                "cases": len(cases),
                "patients": len({case.patient for case in cases}),
                "positive": sum(case.covid for case in cases),
            }
            for name, cases in parts.items()
        },
        "scanners": sorted({case.columns.get("scanner", "") for case in dataset.cases} - {""}),
    }


def replace_file(path: Path, content: bytes) -> None:
    """Write a file durably: after a kill, either the old or the new file is there, complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
