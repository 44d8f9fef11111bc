"""What `pip install` of a wheel or a source distribution brings: all that the node needs, outside a checkout."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dicom_node", "inference", "storage", "config")
NOT_INSTALLED = {".c", ".h"}
"""Sources of the C part: a source distribution needs them, an installation does not."""
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def run(arguments: list[str], folder: Path, **variables: str) -> str:
    """Standard output of a command that must succeed, run in a folder outside the checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DICOM_NODE_", "PYTHON"))}
    with subprocess.Popen(
        arguments,
        cwd=folder,
        env={**kept, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, complained = process.communicate(timeout=280)
        except BaseException:  # the node of a demonstration would go on without it
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, f"{arguments}:\n{said[-2000:]}\n{complained[-4000:]}"
    return said


def build(source: Path, what: str, to: Path) -> Path:
    """Build a "wheel" or an "sdist" of a source tree with the setuptools at hand; no network."""
    to.mkdir(exist_ok=True)
    return to / run([sys.executable, "-c", BUILD, f"build_{what}", str(to)], source).split()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout with a clean copy of it in `checkout`."""
    folder = tmp_path_factory.mktemp("packaging")
    ignored = shutil.ignore_patterns(".*_cache", ".git", ".venv", ".hypothesis", "__pycache__", "*.egg-info", "*.so")
    (folder / "checkout").mkdir()
    for path in ROOT.iterdir():
        if path.is_dir() and path.name in (*PACKAGES, "tests", "docs", "benchmarks", ".ci"):
            shutil.copytree(path, folder / "checkout" / path.name, ignore=ignored)
        elif path.is_file() and path.name != ".git":
            shutil.copy2(path, folder / "checkout" / path.name)
    return folder


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    """A wheel built from the checkout, as `pip install .` builds one."""
    return build(folder / "checkout", "wheel", folder / "dist")


@pytest.fixture(scope="module")
def sdist(folder: Path) -> Path:
    """A source distribution built from the checkout."""
    return build(folder / "checkout", "sdist", folder / "dist")


@pytest.fixture(scope="module")
def wheel_of_sdist(folder: Path, sdist: Path) -> Path:
    """A wheel built from nothing but the source distribution, as `pip install FILE.tar.gz` builds one."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return build(source, "wheel", folder / "dist-of-sdist")


@pytest.fixture(scope="module")
def installed(folder: Path) -> Callable[[Path], Path]:
    """Installs a wheel into an empty environment that sees our dependencies. Returns its folder of programs."""

    def install(wheel: Path) -> Path:
        home = folder / f"environment-of-{wheel.parent.name}"
        if not home.exists():
            venv.create(home, with_pip=False, symlinks=True)
            python = str(home / "bin" / "python")
            pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
            run([*pip, str(wheel)], folder)
            # Only now: pip must not take this environment's own installation of the node for the new one.
            there = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
            (Path(there) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return home / "bin"

    return install


def names_in(wheel: Path) -> set[str]:
    """Paths of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def data_files(folder: Path) -> set[str]:
    """Every file of the packages that is not Python."""
    return {
        path.relative_to(folder).as_posix()
        for package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".so")
    }


def test_a_wheel_holds_every_data_file_of_the_packages(folder: Path, wheel: Path) -> None:
    wanted = {name for name in data_files(folder / "checkout") if Path(name).suffix not in NOT_INSTALLED}
    assert "config/models/demonstration/unet.safetensors" in wanted
    assert "storage/views.sql" in wanted
    assert wanted <= names_in(wheel)


def test_a_source_distribution_gives_the_same_wheel(
    folder: Path, wheel: Path, wheel_of_sdist: Path, sdist: Path
) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert data_files(folder / "checkout") <= names
    assert {"LICENSE", "NOTICE", "Makefile", "tests/conftest.py"} <= names
    assert names_in(wheel_of_sdist) == names_in(wheel)


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_a_source_distribution_builds_the_c_part(folder: Path, installed: Callable, wheel_of_sdist: Path) -> None:
    assert any(name.startswith("inference/lungs/native/_unet") for name in names_in(wheel_of_sdist))
    python = str(installed(wheel_of_sdist) / "python")
    where = run([python, "-c", "import inference.lungs.native._unet as u; print(u.__file__)"], folder)
    assert where.startswith(str(folder / "environment-of-dist-of-sdist"))


def test_the_types_and_the_licence_are_part_of_it(wheel: Path) -> None:
    names = names_in(wheel)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"LICENSE", "NOTICE"} <= {name.rpartition("/")[2] for name in names if ".dist-info/licenses/" in name}
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_an_installed_node_has_its_models_and_analyses(folder: Path, installed: Callable, wheel_of_sdist: Path) -> None:
    programs = installed(wheel_of_sdist)
    work = folder / "work"
    work.mkdir()
    node, data = str(programs / "dicom-node"), {"DICOM_NODE_DATA_DIR": str(work / "var")}
    assert "demonstration" in run([node, "models", "list"], work, **data)
    write = (
        "from pathlib import Path\n"
        "from inference.phantom.chest import make_phantom\n"
        "from inference.phantom.series import write_series\n"
        "write_series(make_phantom(seed=1, slices=40, size=256), Path('series'))\n"
    )
    run([str(programs / "python"), "-c", write], work)
    assert '"probability"' in run([node, "analyse", "series", "--json"], work, **data)
    # The index is made by its migrations, and its views come from views.sql.
    make = "from storage.database import open_database; open_database('sqlite:///var/node.db')"
    run([str(programs / "python"), "-c", make], work)
    with sqlite3.connect(work / "var" / "node.db") as index:
        assert index.execute("SELECT count(*) FROM views_version").fetchone()[0] == 1
    run([node, "status"], work, **data)
    (work / "node.toml").write_text(run([node, "config", "example"], work))
    assert "no mistakes" in run([node, "config", "check", "node.toml"], work, **data)


def test_the_demonstration_runs_from_an_installed_wheel(folder: Path, installed: Callable, wheel: Path) -> None:
    work = folder / "demonstration"
    work.mkdir()
    run([str(installed(wheel) / "dicom-node"), "demo"], work, OPENBLAS_NUM_THREADS="1")
