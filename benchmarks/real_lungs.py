"""Measures the U-Net's Dice on a real scan with a reference mask, after training on real scans among phantoms.

    python -m benchmarks.real_lungs --scans ../shared/data/dicom --reference ../shared/data/masks/wholeLung-64.nrrd \\
        --of cip_ct64_79slices [--hold-out] [--scratch]

Every folder in --scans is one series. Its mask is unsupervised, as in the paper. If the mask passes its checks, the
U-Net learns from it, and from phantoms of the training population. --hold-out leaves the series of the reference out
of the training, so that it is an unseen real scan. Without --scratch the training starts from the demonstration
model's U-Net. The weights are discarded, because the scans' licences do not allow publishing them.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from inference.anatomy.unsupervised import unsupervised_mask
from inference.arrays import Mask
from inference.evaluation.overlap import dice
from inference.lungs.mask import clean
from inference.lungs.unet import UNet
from inference.models.registry import find_model
from inference.preprocess import greys, nearest_pixels, resize_slices
from inference.training.cohort import TRAINING, Prepared, prepare
from inference.training.demonstration import UNET_FINE_SETTINGS, UNET_SETTINGS, lung_case
from inference.training.demonstration_card import PROFILE, UNET_FILE
from inference.training.loop import train
from inference.training.lung_masks import failures
from inference.training.unet_training import LungTask, segment
from inference.volume.ct_volume import CTVolume
from inference.volume.load import load


def read_nrrd(path: Path) -> npt.NDArray[np.integer]:
    """The voxels of a small NRRD label map: (Z, Y, X). Raises ValueError for an encoding or type it does not know."""
    header, _, data = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode("ascii").splitlines() if ": " in line)
    types = {"unsigned short": "<u2", "short": "<i2", "unsigned char": "u1", "uchar": "u1"}
    if fields["encoding"] not in ("gzip", "gz", "raw") or fields["type"] not in types:
        raise ValueError(f"{path.name}: {fields['encoding']} of {fields['type']} is not read here")
    voxels = data if fields["encoding"] == "raw" else gzip.decompress(data)
    shape = [int(size) for size in reversed(fields["sizes"].split())]
    return np.frombuffer(voxels, types[fields["type"]]).reshape(shape)


def prepare_scan(volume: CTVolume) -> Prepared:
    """A real scan, prepared like a training phantom; it has no truth."""
    mask = unsupervised_mask(volume.hu, volume.spacing_mm)
    bits = torch.from_numpy(np.packbits(mask))
    learnable = not failures(mask, volume.spacing_mm)
    grey = torch.from_numpy(greys(volume, PROFILE))
    return Prepared(0, False, "", (), volume.spacing_mm, grey, bits, bits, learnable)


def find(volume: CTVolume, network: UNet) -> Mask:
    """The network's lungs, cleaned, on the volume's grid: bool (Z, Y, X)."""
    grey = resize_slices(greys(volume, PROFILE), PROFILE.unet.size, PROFILE.unet.interpolation_order)
    lungs = segment(network, torch.from_numpy(grey), 8).numpy()
    return clean(nearest_pixels(lungs, (volume.hu.shape[1], volume.hu.shape[2])))


def learn(scans: list[Prepared], phantoms: int, epochs: int, scratch: bool) -> UNet:
    """Train a U-Net on phantoms and on the scans whose masks passed their checks; each scan counts as ten phantoms."""
    cases = [lung_case(prepare(TRAINING, seed), PROFILE.unet.size) for seed in range(phantoms)]
    real = [lung_case(scan, PROFILE.unet.size, every=2) for scan in scans if scan.learnable]
    held = max(1, phantoms // 10)
    torch.manual_seed(0)
    network = UNet()
    if not scratch:
        network.load_state_dict(load_file(find_model(Path("none"), "demonstration") / UNET_FILE))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = replace(UNET_SETTINGS if scratch else UNET_FINE_SETTINGS, epochs=epochs)
    task = LungTask(network, cases[held:] + real * 10, cases[:held], settings, slices_per_step=4, slices_per_volume=4)
    with tempfile.TemporaryDirectory() as folder:
        train(task, settings, Path(folder), report=lambda epoch: print(epoch, file=sys.stderr, flush=True))
    return network


def main() -> None:
    """The command line of `python -m benchmarks.real_lungs`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True, nargs="+", help="NRRD masks of one series")
    parser.add_argument("--of", required=True, help="the folder in --scans that the references belong to")
    parser.add_argument("--hold-out", action="store_true", help="leave that series out of the training")
    parser.add_argument("--scratch", action="store_true", help="from a random start")
    parser.add_argument("--phantoms", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    started = time.monotonic()
    folders = sorted(path for path in chosen.scans.iterdir() if path.is_dir())
    volumes = {path.name: load(sorted(file for file in path.rglob("*") if file.is_file())) for path in folders}
    used = [name for name in volumes if not (chosen.hold_out and name == chosen.of)]
    scans = {name: prepare_scan(volumes[name]) for name in used}
    network = learn(list(scans.values()), chosen.phantoms, chosen.epochs, chosen.scratch)
    target = volumes[chosen.of]
    found, plain = find(target, network), unsupervised_mask(target.hu, target.spacing_mm)
    truth = {path.name: read_nrrd(path) > 0 for path in chosen.reference}
    result = {
        "learned_from": [name for name, scan in scans.items() if scan.learnable],
        "phantoms": chosen.phantoms,
        "dice": {name: round(dice(found, mask), 4) for name, mask in truth.items()},
        "dice_of_the_unsupervised_mask": {name: round(dice(plain, mask), 4) for name, mask in truth.items()},
        "seconds": round(time.monotonic() - started),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
