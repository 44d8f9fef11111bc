"""Measures how fast a compressed series becomes Hounsfield units, compared with pydicom in a loop.

Both sides read the same files from the page cache and take turns in each round, so that a busy machine slows both. The
figure is the median of the rounds' ratios. The volumes of a round must be equal. A third side decodes in this process,
to show the cost of the decoding processes: they are started anew in each round, and their processor time counts.

    python -m benchmarks.decode SERIES_FOLDER [--slices 300] [--rounds 5] [--syntax 1.2.840.10008.1.2.4.70]
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import UID, generate_uid

from inference.volume.decoder_pool import POOL
from inference.volume.decoding_process import decode
from inference.volume.folder import find_series
from inference.volume.load import load

ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.4.57": lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16),
    "1.2.840.10008.1.2.4.70": lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k", reversible=True, level=0),
    "1.2.840.10008.1.2.4.201": lambda a: imagecodecs.htj2k_encode(a, reversible=True),
}


def long_series(source: list[Path], folder: Path, slices: int, syntax: str) -> list[Path]:
    """A series of `slices` files that repeats the source's images, 1 mm apart."""
    datasets = [pydicom.dcmread(path) for path in source]
    encoded = [encapsulate([ENCODERS[syntax](dataset.pixel_array.view(np.uint16))]) for dataset in datasets]
    series_uid, paths = generate_uid(), []
    for index in range(slices):
        dataset = datasets[index % len(datasets)]
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = series_uid, generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], float(index)]
        dataset.PixelData = encoded[index % len(datasets)]
        dataset["PixelData"].VR = "OB"
        paths.append(folder / f"{index:04d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def pydicom_loop(paths: list[Path]) -> np.ndarray:
    """The simplest implementation: read, decode, rescale, sort, stack."""
    slices = []
    for path in paths:
        dataset = pydicom.dcmread(path)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        slices.append((float(dataset.ImagePositionPatient[2]), np.rint(hu).astype(np.int16)))
    return np.stack([hu for _, hu in sorted(slices, key=lambda item: item[0])])


def cpu_s() -> float:
    """Processor time of this process and of the children that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(call: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Wall-clock seconds, seconds of processor time, and the result."""
    start, used = time.perf_counter(), cpu_s()
    result = call()
    took = time.perf_counter() - start
    POOL.end()
    return took, cpu_s() - used, result


@contextmanager
def in_this_process() -> Iterator[None]:
    """Decode in this process, without the node's decoding processes."""
    with mock.patch.object(
        POOL, "decode", lambda codec, parts, rows, columns: decode(codec, b"".join(parts), rows, columns)
    ):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--syntax", choices=sorted(ENCODERS), default="1.2.840.10008.1.2.4.70")
    arguments = parser.parse_args()
    source = next(iter(find_series(arguments.series).values()))
    rounds: dict[str, list[tuple[float, float]]] = {"ours": [], "pydicom": [], "in this process": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = long_series(source, Path(folder), arguments.slices, arguments.syntax)
        for _ in range(arguments.rounds):
            *ours, volume = timed(lambda: load(paths, workers=arguments.workers).hu)
            with in_this_process():
                *inside, same = timed(lambda: load(paths, workers=arguments.workers).hu)
            *theirs, expected = timed(lambda: pydicom_loop(paths))
            assert np.array_equal(volume, expected) and np.array_equal(same, expected)
            for name, figures in (("ours", ours), ("in this process", inside), ("pydicom", theirs)):
                rounds[name].append((figures[0], figures[1]))
    report(arguments, rounds)
    return 0


def report(arguments: argparse.Namespace, rounds: dict[str, list[tuple[float, float]]]) -> None:
    """The medians, and the medians of the rounds' ratios."""
    wall, cpu = ({name: np.array(figures)[:, which] for name, figures in rounds.items()} for which in (0, 1))
    sys.stdout.write(
        f"{UID(arguments.syntax).name}, {arguments.slices} slices, {arguments.workers} threads\n"
        f"this node {np.median(wall['ours']):.2f} s, pydicom in a loop {np.median(wall['pydicom']):.2f} s, "
        f"ratio {np.median(wall['pydicom'] / wall['ours']):.2f}\n"
    )
    inside = "in this process"
    for name, figures in (("clock", wall), ("processor", cpu)):
        ratio = np.median(figures["ours"] / figures[inside])
        sys.stdout.write(
            f"{name}: in decoding processes {np.median(figures['ours']):.2f} s, {inside} "
            f"{np.median(figures[inside]):.2f} s, ratio {ratio:.2f}\n"
        )


if __name__ == "__main__":
    raise SystemExit(main())
