"""From labelled scans to a data set: the node's own loading, checks and preprocessing, and a split by patient."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from inference.anatomy.unsupervised import AIR_BELOW_HU, unsupervised_mask
from inference.arrays import Mask
from inference.covid.card import ZhengCard
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.models.profile import Profile
from inference.models.toml_fields import plain
from inference.preprocess import greys, nearest_pixels
from inference.suitability.check import Policy, check
from inference.training.cached import (
    LEFT_OUT,
    MANIFEST,
    REMOVED,
    VOLUMES,
    CachedCase,
    Dataset,
    LeftOut,
    UnusableDataset,
    replace_file,
    write_volume,
)
from inference.training.dataset import LabelledCase, Split, UnusableLabels
from inference.training.lung_masks import MaskChecks, failures
from inference.volume.ct_volume import CTVolume, upright
from inference.volume.scans import AmbiguousLabel, Scan, header_columns, load_scan, scans_by_case

NOT_FOUND, CORRUPT, DUPLICATE, CONTRADICTION = (
    "NOT_FOUND",
    "CORRUPT_INSTANCE",
    "DUPLICATE_VOLUME",
    "CONTRADICTING_LABEL",
)


@dataclass(frozen=True)
class MaskSettings:
    """How unsupervised lung masks are made and judged, see `unsupervised_mask` and `MaskChecks`."""

    below_hu: int = AIR_BELOW_HU
    airways: bool = False
    checks: MaskChecks = field(default_factory=MaskChecks)


@dataclass(frozen=True)
class BuildSettings:
    """How a data set is made.

    ignore_patient_id: PatientID does not identify the patient, for example in pseudonymised files that all share one.
    workers: processes; a volume of 300 slices takes up to 1 GiB in each.
    """

    masks: MaskSettings = field(default_factory=MaskSettings)
    ignore_patient_id: bool = False
    workers: int = 1


def build_dataset(
    scans: Sequence[Scan],
    labels: Sequence[LabelledCase],
    split: Callable[[Sequence[LabelledCase]], Split],
    card: ZhengCard,
    folder: Path,
    settings: BuildSettings,
    *,
    split_name: str,
    labels_sha256: str = "",
    done: Callable[[int, int], None] = lambda number, total: None,
) -> Dataset:
    """Make a data set in a new folder.

    split: divides the cases into parts; every case's patient is known before it is called.
    card: its profile prepares the volumes, its suitability rules judge them.
    Raises UnusableLabels, before any scan is read, if the labels contradict the headers or each other, or put one
    patient into two parts; UnusableDataset if the folder is already in use or no case is left.
    """
    if (folder / MANIFEST).exists():
        raise UnusableDataset(f"{folder} holds a data set already; choose another folder")
    found, unlabelled = _scans_of(scans, labels)
    left_out = [LeftOut(case.line, case.case, NOT_FOUND, "No series is called so.") for case in labels]
    left_out = [entry for entry in left_out if entry.case not in found]
    present = _with_patients([case for case in labels if case.case in found], found, settings)
    parts = split(present)
    _check_patients(parts, found, settings)
    (folder / VOLUMES).mkdir(parents=True, exist_ok=True)
    cases: list[CachedCase] = []
    numbers = {name: number for number, name in enumerate(sorted({case.patient for case in present}), 1)}
    part_of = {case.case: name for name in ("training", "validation", "test") for case in getattr(parts, name)}
    policy = Policy.from_table(card.suitability)
    works = [
        _Work(
            number=number,
            case=case,
            patient=numbers[case.patient],
            part=part_of[case.case],
            scans=tuple(found[case.case]),
            profile=card.profile,
            policy=policy,
            folder=folder,
            masks=settings.masks,
        )
        for number, case in enumerate(present, 1)
    ]
    for number, outcome in enumerate(_each(works, settings.workers), 1):
        (cases if isinstance(outcome, CachedCase) else left_out).append(outcome)  # type: ignore[arg-type]
        done(number, len(works))
    cases, repeated = _without_duplicates(cases, {case.case: case.line for case in present})
    left_out = sorted([*left_out, *repeated], key=lambda entry: entry.line)
    dataset = Dataset(
        folder, card.profile, f"{card.name} {card.version}", split_name, labels_sha256, tuple(cases), tuple(left_out),
        unlabelled, plain(settings),
    )  # fmt: skip
    _write_lists(dataset)
    if not cases:
        raise UnusableDataset(f"no case is left: {reasons(left_out)}; see {folder / LEFT_OUT}")
    dataset.save()
    return dataset


def reasons(left_out: Sequence[LeftOut]) -> str:
    """How often each reason occurs, in words."""
    counted = Counter(entry.code for entry in left_out)
    return ", ".join(f"{count} x {code}" for code, count in counted.most_common()) or "none was labelled"


def _scans_of(scans: Sequence[Scan], labels: Sequence[LabelledCase]) -> tuple[dict[str, list[Scan]], int]:
    try:
        return scans_by_case(scans, {case.case: case.line for case in labels})
    except AmbiguousLabel as error:
        raise UnusableLabels(str(error)) from None


# Which cases belong to one patient


def _with_patients(
    cases: Sequence[LabelledCase], found: Mapping[str, Sequence[Scan]], settings: BuildSettings
) -> list[LabelledCase]:
    """Each case with its patient: as the labels name it, otherwise its PatientID, otherwise the case itself.

    Raises UnusableLabels if several cases would all be one patient: that PatientID is then a shared pseudonym.
    """
    settled = []
    for case in cases:
        identifier = found[case.case][0].patient
        unnamed = case.patient == case.case and identifier and not settings.ignore_patient_id
        settled.append(replace(case, patient=f"PatientID {identifier}") if unnamed else case)
    if len(settled) > 2 and len({case.patient for case in settled}) == 1:
        raise UnusableLabels(
            "every case has the same PatientID: give a patient column in the labels, or --ignore-patient-id if each "
            "case is a patient of its own"
        )
    return settled


def _check_patients(parts: Split, found: Mapping[str, Sequence[Scan]], settings: BuildSettings) -> None:
    """Raises UnusableLabels if the headers say that one patient, or one study, is in two parts."""
    seen: dict[tuple[str, str], tuple[str, int]] = {}
    for name in ("training", "validation", "test"):
        for case in getattr(parts, name):
            for kind, value in _identities(found[case.case], settings):
                other, line = seen.setdefault((kind, value), (name, case.line))
                if other != name:
                    raise UnusableLabels(
                        f"lines {line} and {case.line} of the labels have the same {kind}, one in {other} and one in "
                        f"{name}: give both the same patient in the labels"
                        + (", or --ignore-patient-id if it is a pseudonym" if kind == "PatientID" else "")
                    )


def _identities(scans: Sequence[Scan], settings: BuildSettings) -> Iterator[tuple[str, str]]:
    for scan in scans:
        if scan.patient and not settings.ignore_patient_id:
            yield "PatientID", scan.patient
        if scan.study:
            yield "StudyInstanceUID", scan.study


# One case


@dataclass(frozen=True)
class _Work:
    """What is handed to another process, so it holds nothing that cannot be pickled, such as a card's tables."""

    number: int
    case: LabelledCase
    patient: int
    part: str
    scans: tuple[Scan, ...]
    profile: Profile
    policy: Policy
    folder: Path
    masks: MaskSettings


def _each(works: Sequence[_Work], workers: int) -> Iterator[CachedCase | LeftOut]:
    if workers <= 1:
        yield from map(_prepare, works)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_prepare, works)


def _prepare(work: _Work) -> CachedCase | LeftOut:
    """Write the volume of the first of a case's series that is accepted, or return why none was."""
    refusal: LeftOut | None = None
    for scan in work.scans:
        try:
            volume = load_scan(scan)
            check(volume, work.policy)
            return _cached(work, scan, volume)
        except UnsuitableSeries as error:
            said = LeftOut(work.case.line, work.case.case, error.code, error.sentence)
        except CorruptInstance:
            said = LeftOut(work.case.line, work.case.case, CORRUPT, "A file cannot be read or decoded.")
        refusal = refusal or said
    return refusal or LeftOut(work.case.line, work.case.case, NOT_FOUND, "No series is called so.")


def _cached(work: _Work, scan: Scan, volume: CTVolume) -> CachedCase:
    masks, stored_digest = work.masks, volume.digest()
    volume = upright(volume)
    mask = unsupervised_mask(volume.hu, volume.spacing_mm, below_hu=masks.below_hu, airways=masks.airways)
    failed = failures(mask, volume.spacing_mm, masks.checks)
    grey = greys(volume, work.profile)
    file = f"{work.number:04d}.safetensors"
    digest = write_volume(work.folder / VOLUMES / file, grey, _as_sampled(mask, grey.shape, work.profile))
    return CachedCase(
        case=work.case.case,
        patient=work.patient,
        covid=work.case.covid,
        date=str(work.case.date),
        part=work.part,
        file=file,
        sha256=digest,
        shape=(grey.shape[0], grey.shape[1], grey.shape[2]),
        spacing_mm=volume.spacing_mm,
        volume_digest=stored_digest,
        mask_ml=round(float(np.count_nonzero(mask)) * volume.voxel_ml, 1),
        mask_failures=failed,
        columns=header_columns(scan, volume),
    )


def _as_sampled(mask: Mask, shape: tuple[int, ...], profile: Profile) -> Mask:
    """The mask with one slice per grey slice, in the same order, each taken from the nearest source slice."""
    if profile.slices.order == "descending":
        mask = mask[::-1]
    nearest = np.minimum(((np.arange(shape[0]) + 0.5) * len(mask) / shape[0]).astype(np.intp), len(mask) - 1)
    return nearest_pixels(mask[nearest].view(np.uint8), (shape[1], shape[2])).view(bool)


def _without_duplicates(
    cases: Sequence[CachedCase], lines: Mapping[str, int]
) -> tuple[list[CachedCase], list[LeftOut]]:
    """Keep one case per volume, and none if the labels of a volume's cases contradict each other."""
    by_volume: dict[str, list[CachedCase]] = {}
    for case in cases:
        by_volume.setdefault(case.volume_digest, []).append(case)
    left_out = []
    for same in by_volume.values():
        contradicting = len({case.covid for case in same}) > 1
        for case in same if contradicting else same[1:]:
            code = CONTRADICTION if contradicting else DUPLICATE
            others = ", ".join(str(lines[other.case]) for other in same if other is not case)
            sentence = f"The very same volume as line {others}" + (", with another label." if contradicting else ".")
            left_out.append(LeftOut(lines[case.case], case.case, code, sentence))
    gone = {entry.case for entry in left_out}
    return [case for case in cases if case.case not in gone], left_out


# What is written beside the volumes


def _write_lists(dataset: Dataset) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["line", "case", "code", "reason"])
    writer.writerows([entry.line, entry.case, entry.code, entry.sentence] for entry in dataset.left_out)
    replace_file(dataset.folder / LEFT_OUT, text.getvalue().encode())
    lines = [
        "# Cases whose lung mask the U-Net is not to learn from, one a line. Those that failed a check stand here",
        "# already; look at masks-*.png, add what failed unseen, and delete what is good after all.",
        *(f"{case.case}  # {' '.join(case.mask_failures)}" for case in dataset.cases if case.mask_failures),
    ]
    replace_file(dataset.folder / REMOVED, ("\n".join(lines) + "\n").encode())


def file_sha256(path: Path) -> str:
    """SHA-256 hex of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
