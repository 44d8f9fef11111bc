"""Third parties' models as the node may meet them: one that works, and many that do not. Run in processes of their own.

Each is an entry point's object: `tests.hostile_models:works`.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config.reasons import ReasonCode
from inference.errors import ModelError, UnsuitableSeries
from inference.plug import Code, Measurement, Output, Segment

ORGAN = Code("91723000", "SCT", "Anatomical Structure")
LUNG = Code("39607008", "SCT", "Lung")
MILLILITRE = Code("mL", "UCUM", "milliliter")
VOLUME = Code("118565006", "SCT", "Volume")


@dataclass
class Model:
    analyse_: Callable
    loads: Callable = lambda folder: None
    folder: Path | None = None

    def load(self, folder, card, device):
        self.loads(folder)
        return replace(self, folder=folder)

    def analyse(self, volume):
        return self.analyse_(volume)


def answer(volume, **changes):
    mask = volume.hu < -300
    measured = Measurement(VOLUME, np.float32(mask.sum() * volume.voxel_ml), MILLILITRE, segment="Air")
    output = Output(measurements=(measured,), segments=(Segment("Air", mask, ORGAN, LUNG, "anatomy"),))
    return replace(output, heat=(mask * 255).astype(np.uint8), **changes)


def analysis(function):
    """A model whose `analyse` is this function, and gives a good answer if that returns None."""
    return Model(lambda volume: function(volume) or answer(volume))


@analysis
def works(volume):
    return None


@analysis
def loops(volume):
    while True:
        pass


@analysis
def wants_50_gb(volume):
    np.ones(50 << 30, np.uint8)


@analysis
def shares_much(volume):
    import mmap

    shared = mmap.mmap(-1, 4 << 30)
    for _ in range(4 << 10):
        shared.write(b"x" * (1 << 20))
    time.sleep(60)


@analysis
def wants_much_of_torch(volume):
    import torch

    torch.ones(50 << 30)


@analysis
def reads_address_0(volume):
    ctypes.string_at(0)


@analysis
def raises(volume):
    raise KeyError("a patient's name")


@analysis
def prints_10_gb(volume):
    for _ in range(10 << 10):
        sys.stdout.write("x" * (1 << 20))


@analysis
def fills_the_disk(volume):
    for number in range(10 << 10):
        Path(f"file{number}").write_bytes(b"x" * (1 << 20))


@analysis
def writes_one_large_file(volume):
    with open("large", "wb") as file:
        for _ in range(10 << 10):
            file.write(b"x" * (1 << 20))


def _writes_raw(*parts):
    """Answers past the node's own code: on whichever descriptor is the socket."""
    for descriptor in range(3, 1024):
        try:
            channel = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        for part in parts:
            channel.sendall(part)


@analysis
def sends_10_gb(volume):
    _writes_raw(b"O", *[b"x" * (1 << 20)] * (10 << 10))


@analysis
def sends_nonsense(volume):
    _writes_raw(b"O", b"\xff" * 1000)
    os._exit(0)


@analysis
def answers_another_grid(volume):
    (segment,) = answer(volume).segments
    return answer(volume, segments=(replace(segment, mask=segment.mask[:-1]),))


@analysis
def answers_nan(volume):
    return answer(volume, measurements=(Measurement(VOLUME, float("nan"), MILLILITRE),))


@analysis
def answers_something_else(volume):
    return {"probability": 0.5}


def _answers_code(value, scheme):
    measured = Measurement(Code(value, scheme, "Lung"), 1.0, MILLILITRE)
    return lambda volume: answer(volume, measurements=(measured,))


answers_misspelt_code = Model(_answers_code("39607009", "SCT"))


@analysis
def ends_without_an_answer(volume):
    os._exit(0)


@analysis
def is_told_to_stop_with_the_node(volume):
    signal.raise_signal(signal.SIGTERM)
    return answer(volume, trace={"leads its session": os.getsid(0) == os.getpid()})


@analysis
def exits(volume):
    sys.exit(0)


def _unsuitable(code, sentence):
    def refuse(volume):
        raise UnsuitableSeries(code, sentence)

    return refuse


refuses = Model(_unsuitable(ReasonCode.SLICE_THICKNESS, "The slices are 7 mm thick; the model needs 2 mm."))
refuses_without_a_reason = Model(_unsuitable("BECAUSE", "I do not like it."))


def _lacks_weights(folder):
    raise ModelError(f"{folder.name}: weights missing")


has_no_weights = Model(answer, _lacks_weights)


def _refusal(attempt):
    """The name of the error number with which the kernel answers; empty if it lets it pass."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""


def _connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as channel:
        channel.settimeout(5)
        channel.connect(address)


def _fork():
    if not os.fork():
        time.sleep(600)
        os._exit(0)


def _target(descriptor):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return "closed"


class ReachesOut:
    """Says what a model gets when it tries what it may not. Its folder has the targets, in targets.json."""

    def load(self, folder, card, device):
        self.targets = json.loads((folder / "targets.json").read_text())
        return self

    def analyse(self, volume):
        node, secret = int(self.targets["node"]), self.targets["secret"]
        tried = {
            "internet socket": lambda: _connect(socket.AF_INET, ("127.0.0.1", self.targets["port"])),
            "socket in the file system": lambda: _connect(socket.AF_UNIX, self.targets["socket"]),
            "fork": _fork,
            "signal": lambda: os.kill(node, 0),
            "environment": lambda: Path(f"/proc/{node}/environ").read_bytes(),
            "memory": lambda: open(f"/proc/{node}/mem", "rb").close(),
            "file": lambda: Path(secret).read_bytes(),
            "checkout": lambda: Path(__file__).parents[1].joinpath("setup.cfg").read_bytes(),
            "list": lambda: os.listdir(Path(secret).parent),
            "write": lambda: Path(secret).with_name("new").write_bytes(b""),
            "own folder": lambda: Path(self.targets["folder"], "new").write_bytes(b""),
        }
        found = {name: _refusal(attempt) for name, attempt in tried.items()}
        Path("left").mkdir()
        Path("left", "behind").write_text("x")
        seen = {
            "environment": sorted(os.environ),
            "descriptors": [_target(name) for name in os.listdir("/proc/self/fd")],
            "scratch": os.getcwd(),
            "task": Path("/proc/self/cmdline").read_text().split("\0"),
            "volume": repr(replace(volume, hu=volume.hu[:0])).split(),
        }
        return answer(volume, trace={"refused": found, "seen": seen})


reaches_out = ReachesOut()
