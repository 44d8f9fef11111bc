"""How long each object of a result takes to build, and how much time SEG and SC add to the report.

    python -m benchmarks.report --slices 300 --rounds 3

A phantom replaces the scan, and its truth the networks' masks, so no model runs. Prints median CPU seconds.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.sources import read_sources
from inference.covid.output import output_of
from inference.covid.verdict import Verdict
from inference.models.cards import read_card, shipped_folder
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume
from inference.volume.load import load
from storage.object_kinds import ObjectKind


def phantom_finding(folder: Path, slices: int) -> tuple[CTVolume, Finding]:
    """A positive phantom, read back from its files, and the finding of a perfect model."""
    phantom = make_phantom(11, slices=slices, size=512, lesions="mixed")
    volume = load(write_series(phantom, folder))
    half = volume.hu.shape[2] // 2
    right, left = (int(part.sum()) for part in (phantom.lung_mask[:, :, :half], phantom.lung_mask[:, :, half:]))
    model = read_card(shipped_folder() / "demonstration").identity()
    verdict = Verdict(
        probability=0.9,
        lung_mask=phantom.lung_mask,
        lung_volume_ml=(left + right) * volume.voxel_ml,
        left_lung_ml=left * volume.voxel_ml,
        right_lung_ml=right * volume.voxel_ml,
        localisation=phantom.lesion_mask,
        heat=phantom.lesion_mask * np.uint8(255),
        threshold=0.5,
        device="none",
        precision="float32",
        versions={},
        timings_s={},
    )
    return volume, Finding(model, output_of(verdict, volume, model), volume.digest())


def cpu_s(work: Callable[[], object], rounds: int) -> float:
    """Median CPU seconds of one call."""
    found = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return float(np.median(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    context = ReportContext(created_at=datetime.now(UTC))
    with tempfile.TemporaryDirectory() as folder:
        volume, finding = phantom_finding(Path(folder), arguments.slices)
        sources = read_sources(volume)
        out = sys.stdout.write
        out(f"headers: {cpu_s(lambda: read_sources(volume), arguments.rounds):.2f} s\n")
        for kinds in (
            [ObjectKind.REPORT],
            [ObjectKind.SEGMENTATION],
            [ObjectKind.SUMMARY],
            [ObjectKind.REPORT, ObjectKind.SEGMENTATION, ObjectKind.SUMMARY],
            KINDS,
        ):

            def build(wanted: list[str] = list(kinds)) -> list[bytes]:  # noqa: B006 - bound at once
                objects = build_all(finding, volume, sources, context, wanted)
                return [to_part10(dataset) for _, dataset in objects]

            seconds = cpu_s(build, arguments.rounds)
            out(f"{', '.join(kinds)}: {seconds:.2f} s, {sum(map(len, build())) / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
