"""U-Net engines: a mask depends on its slice alone, and the slices of the verdict are always among those run."""

import platform
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from inference.covid import loading
from inference.covid.card import read_zheng_card
from inference.covid.loading import load_pipeline, number_format
from inference.covid.pipeline import Pipeline
from inference.covid.verdict_input import needed_slices
from inference.device import Device, choose_device, naming_loss
from inference.errors import DeviceLost, ModelError
from inference.lungs import native
from inference.lungs.engine import BackEnd, open_unet
from inference.lungs.engine_cuda import CudaUnet
from inference.lungs.engine_native import NativeUnet
from inference.lungs.fused import fuse
from inference.lungs.unet import Statistics, UNet
from inference.models.cards import shipped_folder
from inference.models.profile import Precision
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from inference.preprocess import nearest_resampled, verdict_range
from inference.volume.ct_volume import CTVolume
from inference.volume.load import load

AUTHORS = read_zheng_card(shipped_folder() / "zheng2020-authors")
# What this machine has; that the C code is there wherever it can be has a test of its own.
BACK_ENDS = [
    "torch",
    *(["openvino"] if find_spec("openvino") else []),
    *(["native"] if native.available() else []),
]


def cpu(threads: int) -> Device:
    return Device("cpu", 0, "", threads)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_masks_do_not_depend_on_threads_or_on_the_other_slices(back_end: BackEnd) -> None:
    torch.manual_seed(0)
    unet = UNet("batch").eval()
    grey = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    together = [open_unet(unet, cpu(threads), "float32", back_end).masks(grey) for threads in (1, 2)]
    alone = open_unet(unet, cpu(1), "float32", back_end)
    one_by_one = np.concatenate([alone.masks(grey[i : i + 1]) for i in range(5)])
    assert np.array_equal(together[0], together[1]) and np.array_equal(together[0], one_by_one)
    with torch.inference_mode():
        plain = fuse(unet)(torch.from_numpy(grey)[:, None])[:, 0].numpy()
    assert np.mean(plain != together[0]) < 1e-3


def random_unet(statistics: Statistics) -> UNet:
    """A network with weights of every sign in its normalisation, whose masks are neither full nor empty."""
    torch.manual_seed(1)
    unet = UNet(statistics).eval()
    for layer in unet.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.weight, 0.5, 0.7)
            torch.nn.init.normal_(layer.bias, 0, 0.3)
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.05, 0.3)
    return unet


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("size", [(32, 16), (48, 80), (112, 128), (208, 256)], ids=str)
@pytest.mark.parametrize("kind", native.available())
def test_native_masks_are_pytorchs_on_every_size(
    kind: native.Kind, size: tuple[int, int], statistics: Statistics
) -> None:
    unet = random_unet(statistics)
    precision: Precision = "bfloat16" if kind == "avx512_bf16" else "float32"
    grey = np.random.default_rng(0).integers(0, 256, (2, *size), dtype=np.uint8)
    grey[:, : size[0] // 2, : size[1] // 3] //= 4
    with torch.inference_mode():
        scores = unet(torch.from_numpy(grey)[:, None].float() / 255)
        middle = (scores[:, 1] - scores[:, 0]).median()
        unet.outc["conv"].bias[1] -= middle  # half of the pixels are lung then
    margin = (scores[:, 1] - scores[:, 0] - middle).numpy()
    ours = NativeUnet(unet, cpu(2), precision, kind).masks(grey)
    # A pixel may differ only if the two classes are about even.
    clear = np.abs(margin) > 2e-3 * margin.std()
    assert precision == "bfloat16" or np.array_equal(ours[clear], (margin > 0)[clear])
    assert np.mean(ours != (margin > 0)) < (0.1 if precision == "bfloat16" else 2e-3)
    assert np.mean(ours) == pytest.approx(0.5, abs=0.1)


def test_where_there_is_a_compiler_the_c_code_is_built() -> None:
    assert native.library() is not None or not shutil.which("cc") or platform.machine() != "x86_64"


def test_native_refuses_what_it_cannot_compute() -> None:
    if native.available():
        with pytest.raises(ModelError, match="multiples of 16"):
            NativeUnet(UNet(), cpu(1), "float32").masks(np.zeros((1, 24, 32), np.uint8))
    with pytest.raises(ModelError, match="float16"):
        NativeUnet(UNet(), cpu(1), "float16")


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("GET was unable to find an engine to execute this computation"),  # cuDNN without room to work in
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["PyTorch", "cuDNN", "cuBLAS"],
)
def test_the_gpu_engine_gives_the_masks_of_the_cpu_in_batches_that_shrink_until_they_fit(error: RuntimeError) -> None:
    torch.manual_seed(0)
    unet = UNet("batch").eval()
    grey = np.random.default_rng(0).integers(0, 256, (7, 64, 64), dtype=np.uint8)
    engine, batches = CudaUnet(unet, cpu(1), "float32"), []
    fused, room = engine._fused, 2

    class Small(torch.nn.Module):
        """A GPU that has room for some slices."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batches.append(len(x))
            if len(x) > room:
                raise error
            return fused(x)

    engine._fused = Small()
    assert np.mean(engine.masks(grey) != open_unet(unet, cpu(1), "float32", "torch").masks(grey)) < 1e-3
    assert batches[-4:] == [2, 2, 2, 1]
    room = 4  # another process has ended
    engine.masks(grey)
    assert batches[-2:] == [4, 3]
    room = 0
    with pytest.raises(RuntimeError) as raised:
        engine.masks(grey)
    assert raised.value is error


def test_an_error_that_is_not_of_memory_is_not_tried_with_smaller_batches() -> None:
    engine, tried = CudaUnet(UNet("batch").eval(), cpu(1), "float32"), []

    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tried.append(len(x))
            raise RuntimeError("CUDA error: unspecified launch failure")

    engine._fused = Broken()
    with pytest.raises(RuntimeError, match="launch failure"):
        engine.masks(np.zeros((4, 32, 32), np.uint8))
    assert tried == [4]


def test_a_gpu_gets_the_engine_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr("inference.lungs.engine_cuda.CudaUnet", lambda *_: chosen.append("cuda"))
    open_unet(UNet(), Device("cuda", 0, "", 1), "float32")
    assert chosen == ["cuda"]


def test_lower_precision_keeps_the_statistics_of_a_slice() -> None:
    """Mean and variance in bfloat16 would lose nearly everything of a slice whose values lie far from 0."""
    torch.manual_seed(0)
    unet = UNet("batch").eval()
    torch.nn.init.constant_(unet.inc.double_conv[0].bias, 0.0)
    grey = np.random.default_rng(0).integers(200, 256, (2, 64, 64), dtype=np.uint8)
    exact, lower = (CudaUnet(unet, cpu(1), precision).masks(grey) for precision in ("float32", "bfloat16"))
    assert np.mean(exact != lower) < 0.15


def test_a_back_end_that_cannot_drive_the_device_is_refused() -> None:
    with pytest.raises(ModelError, match="OpenVINO"):
        open_unet(UNet(), Device("cuda", 0, "", 1), "float32", "openvino")


@pytest.mark.parametrize(("slices", "count"), [(67, 268), (300, 300), (480, 300)])
def test_the_verdicts_slices_and_those_nearest_to_the_source_are_run(slices: int, count: int) -> None:
    chosen = set(needed_slices(slices, count, AUTHORS.profile).tolist())
    start, stop = verdict_range(count, AUTHORS.profile.slices)
    assert chosen >= set(range(start, stop)) | set(nearest_resampled(slices, count).tolist())
    assert min(chosen) >= 0 and max(chosen) < count


def test_the_verdicts_slices_stay_in_float32_even_when_asked_to_be_fast() -> None:
    assert number_format(AUTHORS.precisions, cpu(1), "fast") == "float32"
    assert number_format(AUTHORS.reporting_precisions, cpu(1), "exact") == "float32"


class _Failing:
    """A network on a GPU that fails."""

    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def masks(self, _: object) -> object:
        raise self.error


DEMONSTRATION = shipped_folder() / "demonstration"


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> CTVolume:
    folder = tmp_path_factory.mktemp("chest")
    write_series(make_phantom(3, slices=40, size=256, lesions="none"), folder)
    return load(sorted(folder.iterdir()))


def failing(error: RuntimeError) -> Pipeline:
    """A pipeline whose U-Net raises an error."""
    pipeline = load_pipeline(DEMONSTRATION, "cpu", threads=1)
    pipeline.segmentation.unet = pipeline.segmentation.reporting = _Failing(error)  # type: ignore[assignment]
    pipeline._spare = lambda: load_pipeline(DEMONSTRATION, "cpu", threads=1)
    return pipeline


def test_a_volume_too_large_for_the_gpu_is_taken_over_by_the_cpu(chest: CTVolume) -> None:
    short = failing(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    finding = short.run(chest)
    assert finding.device.startswith("cpu") and not finding.positive
    short._spare = None
    with pytest.raises(torch.cuda.OutOfMemoryError):
        short.run(chest)


def test_a_gpu_that_is_lost_in_mid_run_is_named_and_nothing_takes_its_place(
    chest: CTVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spare would hide it, and the GPU is of no more use to this process."""

    def synchronize(_: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    broken = failing(torch.AcceleratorError("CUDA error: unspecified launch failure"))
    broken._device = Device("cuda", 0, "H200", 1)
    broken.segmentation._device = cpu(1)
    with pytest.raises(DeviceLost, match="H200"):
        broken.run(chest)
    with pytest.raises(RuntimeError, match="not a loss"), naming_loss(cpu(1)):
        raise RuntimeError("not a loss")


def test_an_error_of_the_program_is_not_taken_for_one_of_the_gpu(chest: CTVolume) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied")).run(chest)


def broken(*_: object, **__: object) -> torch.Tensor:
    raise torch.AcceleratorError("CUDA error: unknown error")


@pytest.mark.parametrize("error", [torch.AcceleratorError, torch.cuda.DeferredCudaCallError])
def test_a_gpu_that_does_not_answer_is_not_available(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def off_the_bus(_: int) -> str:
        raise error("CUDA error: unknown error")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", off_the_bus)
    with pytest.raises(ModelError, match="does not compute"):
        choose_device("cuda:0")
    assert choose_device("auto").kind == "cpu"


def test_a_gpu_that_only_has_a_name_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no CUDA here: nothing can be computed there."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    monkeypatch.setattr(torch, "ones", broken)
    with pytest.raises(ModelError, match="does not compute"):
        choose_device("cuda:0")


def test_a_gpu_without_room_for_the_networks_leaves_them_to_the_cpu(
    chest: CTVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = loading.pipeline_of

    def on_a_full_card(*arguments: object) -> Pipeline:
        device = arguments[3]
        if isinstance(device, Device) and device.kind == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return make(*arguments)  # type: ignore[arg-type]

    cpu_device = choose_device("cpu", 1)
    monkeypatch.setattr(loading, "pipeline_of", on_a_full_card)
    monkeypatch.setattr(
        loading, "choose_device", lambda wanted, _: Device("cuda", 0, "H200", 1) if wanted == "cuda" else cpu_device
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert load_pipeline(DEMONSTRATION, "cuda", threads=1).run(chest).device.startswith("cpu")
