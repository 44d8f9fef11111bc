"""The program itself: Python, torch, the devices of the workers, the U-Net in C, the locks around others' models."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from config.settings import Settings
from dicom_node.runtime.installation.found import Found, good, look, wrong
from inference.errors import ModelError

NVIDIA = Path("/proc/driver/nvidia/version")
AGAIN = "install the node again into an environment of its own"


def program(settings: Settings | None) -> Iterator[Found]:
    """settings: None if they have mistakes; then devices and the locks are left out."""
    here = f"{platform.python_version()} in {sys.prefix}"
    yield good("Python", here) if sys.version_info >= (3, 11) else wrong("Python", here, "install Python 3.11 or newer")
    yield from _packages()
    yield _native()
    if settings is not None:
        yield from _devices(settings)
        yield _locks(settings)


def _packages() -> Iterator[Found]:
    """Packages that the node needs in one version and that are there in another, or not at all."""
    try:
        wanted = [one.split(";")[0].strip() for one in requires("dicom-node") or [] if "extra ==" not in one]
        said = f"dicom-node {version('dicom-node')}, torch {version('torch')}"
    except PackageNotFoundError as error:
        yield wrong("packages", f"{error.name} is not installed", AGAIN)
        return
    others = [one for one in wanted if "==" in one and not _is_there(*one.split("=="))]
    if others:
        yield look("packages", f"{said}; others than it was tested with: {', '.join(others)} wanted", AGAIN)
    else:
        yield good("packages", said)


def _is_there(name: str, wanted: str) -> bool:
    try:
        return version(name.split("[")[0]).split("+")[0] == wanted  # "+cpu" is a build of the same version
    except PackageNotFoundError:
        return False


def _native() -> Found:
    from inference.lungs import native

    if native.available():
        return good("U-Net in C", f"runs with {native.available()[-1]}")
    if native.library() is None:
        do = "install the wheel for this platform, or a C compiler and then the source distribution"
        return look("U-Net in C", "is not there: lungs are found several times more slowly on a CPU", do)
    return look("U-Net in C", "does not run on this processor (no AVX2): a slower engine does", "analyse on a GPU")


def _devices(settings: Settings) -> Iterator[Found]:
    try:
        from inference.device import choose_device
    except (ImportError, OSError) as error:
        yield wrong("torch", f"cannot be loaded: {error}", AGAIN)
        return
    for number, wanted in enumerate(settings.worker.devices):
        part = f"worker {number}"
        try:
            device = choose_device(wanted, settings.worker.threads)
        except ModelError as error:
            yield wrong(part, str(error), "correct [worker] devices, or see that nvidia-smi lists the GPU")
            continue
        says = f'"{wanted}" is {device.name}, {device.threads} CPU threads'
        if wanted == "auto" and device.kind == "cpu" and NVIDIA.exists():
            do = "install a torch built for CUDA that this driver supports; a container needs the GPU handed in"
            yield look(part, f"{says}; this machine has an NVIDIA driver, but torch sees no GPU", do)
        else:
            yield good(part, says)


def _locks(settings: Settings) -> Found:
    from inference.isolation.host import missing_locks

    part, missing = "models of others", missing_locks()
    if not missing:
        return good(part, "can be cut off from the network, from files and from other processes")
    do = (
        "allow user namespaces, seccomp and Landlock (kernel 5.13 or newer; lsm= must list landlock): "
        "without them only the node's own models run"
    )
    if settings.worker.unconfined_models == "allow":
        do = 'they run all the same: [worker] unconfined_models = "allow"'
    return look(part, missing, do)
