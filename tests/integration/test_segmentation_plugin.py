"""The example package of a third party: TorchScript, ONNX and a MONAI bundle, each by its card, and shut in."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from config.reasons import ReasonCode
from config.settings import Settings
from dicom_node.analysis.open_model import open_folder
from inference.errors import ModelError, UnsuitableSeries
from inference.isolation.host import IsolatedLoaded
from inference.models.kinds import kinds
from inference.volume.ct_volume import CTVolume
from tests import networks
from tests.isolated import a_volume
from tests.plugins import EXAMPLE, install_example

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CARD = """
kind = "{kind}"
name = "air"
version = "1.0"
title = "Air"
source = "a test"
licence = "that of this repository"
intended_use = "a test"
[weights.network]
file = "{file}"
sha256 = "{sha256}"
[[codes]]
value = "118565006"
scheme = "SCT"
meaning = "Volume"
[settings]
window_hu = [-1000, 1000]
{settings}
[[settings.labels]]
value = 1
title = "Air"
category = ["91720002", "SCT", "Body Substance"]
type = ["15158005", "SCT", "Air"]
[limits]
memory_mb = 4096
time_s = 200
"""


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package where this process and the models' find it."""
    folder = tmp_path_factory.mktemp("installed")
    install_example(folder, tmp_path_factory.mktemp("checkout"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        kinds.cache_clear()
        yield
    kinds.cache_clear()


def write_card(folder: Path, kind: str, file: str, settings: str = "") -> Path:
    sha256 = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "card.toml").write_text(CARD.format(kind=kind, file=file, sha256=sha256, settings=settings))
    return folder


def torchscript(folder: Path, settings: str = "") -> Path:
    folder.mkdir()
    networks.write_torchscript(folder / "network.pt")
    return write_card(folder, "segmentation", "network.pt", settings)


def resampled(folder: Path) -> Path:
    return torchscript(folder, "spacing_mm = [4.0, 3.0, 3.0]")


def onnx(folder: Path) -> Path:
    folder.mkdir()
    networks.write_onnx(folder / "network.onnx")
    return write_card(folder, "segmentation", "network.onnx")


def monai_bundle(folder: Path) -> Path:
    networks.write_bundle(folder, spacing_mm=(3.0, 3.0, 4.0))
    return write_card(folder, "monai-bundle", "models/model.pt")


def opened(folder: Path) -> IsolatedLoaded:
    """The model of a folder as a worker opens it, but for any volume."""
    loaded = open_folder(folder, Settings(), "cpu").loaded
    assert isinstance(loaded, IsolatedLoaded)
    return replace(loaded, policy=None)


def smooth_volume() -> CTVolume:
    """Smooth at the networks' spacings. Its rows are stored from back to front."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(30, 60, 64)), 4)
    affine = np.diag([1.5, -1.5, 2.0, 1.0])
    affine[:3, 3] = (-40.0, 50.0, 10.0)
    hu = (noise * 20_000).clip(-1000, 1000).astype(np.int16)
    return replace(a_volume(30), hu=hu, spacing_mm=(2.0, 1.5, 1.5), affine=affine)


@pytest.mark.parametrize(
    ("write", "dice", "package"),
    [
        (torchscript, 1.0, "torch"),
        (resampled, 0.96, "torch"),
        (onnx, 1.0, "onnxruntime"),
        (monai_bundle, 0.97, "monai"),
    ],
)
def test_a_network_marks_what_it_was_made_to_mark(tmp_path: Path, write, dice: float, package: str) -> None:
    volume = smooth_volume()
    output = opened(write(tmp_path / "model")).analyse(volume)
    (segment,), (measured,) = output.segments, output.measurements
    assert networks.dice_with_air(segment.mask, volume.hu) >= dice
    assert measured.value == pytest.approx(segment.mask.sum() * volume.voxel_ml)
    assert {package, "segmentation-plugin"} <= set(output.run.versions)


def test_a_concept_that_the_card_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = torchscript(tmp_path / "model")
    card = folder / "card.toml"
    card.write_text(card.read_text().replace('"118565006"', '"39607008"'))
    with pytest.raises(UnsuitableSeries, match="118565006 of SCT, Volume: not among") as caught:
        opened(folder).analyse(smooth_volume())
    assert caught.value.code == ReasonCode.MODEL_CODE


def test_altered_weights_are_refused_before_anything_runs(tmp_path: Path) -> None:
    folder = torchscript(tmp_path / "model")
    with (folder / "network.pt").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match=r"network\.pt: SHA-256 is"):
        opened(folder)
    (folder / "network.pt").unlink()
    with pytest.raises(ModelError, match=r"network\.pt: missing"):
        opened(folder)


def test_the_package_is_short() -> None:
    lines = [line for path in EXAMPLE.glob("*/*.py") for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) < 150
