"""Build dist/: a source distribution, and from it a wheel with the C part, the same bytes from the same commit.

python packaging/dist.py DIST. Needs setuptools and auditwheel with patchelf. SOURCE_DATE_EPOCH dates every file;
`make dist` takes it from the commit.
"""

import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
LEAST = ("inference/lungs/native/_unet", "config/models/demonstration/unet.safetensors", "storage/views.sql")
NEVER = re.compile(r"__pycache__|\.py[cod]$|^tests/|^benchmarks/|^shared/|^packaging/")


def main(dist: Path) -> None:
    """Build both and say what they are."""
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    dist.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copy_sources(work / "checkout")
        sdist = repack(build("build_sdist", work / "checkout", work / "sdist"), epoch)
        with tarfile.open(sdist) as archive:
            archive.extractall(work / "unpacked", filter="data")
        (source,) = (work / "unpacked").iterdir()
        wheel = for_many_linuxes(build("build_wheel", source, work / "wheel"), work / "repaired")
        refuse_what_does_not_belong(wheel)
        for path in (sdist, wheel):
            print(shutil.copy2(path, dist / path.name))


def copy_sources(to: Path) -> None:
    """The files that git knows, with the modes that git keeps; outside a checkout, all of them."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False)
    if listed.returncode:
        shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns("__pycache__", "*.so", "build", "dist", ".venv"))
        return
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)
            (to / name).chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o644)


def build(what: str, source: Path, to: Path) -> Path:
    """A distribution of a source tree, by setuptools. The C part gets no notes of where it was built."""
    to.mkdir()
    flags = f"{os.environ.get('CFLAGS', '')} -g0 -ffile-prefix-map={source}=."
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(to)],
        cwd=source,
        env={**os.environ, "CFLAGS": flags.strip()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return to / done.stdout.split()[-1]


def repack(archive: Path, epoch: int) -> Path:
    """The same source distribution, sorted, with one date and no owner: tar and gzip note both."""
    packed = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with open(archive, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as compressed:
        compressed.write(packed.getvalue())
    return archive


def for_many_linuxes(wheel: Path, to: Path) -> Path:
    """The wheel under the oldest manylinux tag that its C part allows, as auditwheel finds it."""
    if wheel.name.endswith("-any.whl"):
        raise SystemExit(f"{wheel.name} has no C part: a C compiler and Python's headers are needed")
    subprocess.run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(to), str(wheel)], check=True)
    (repaired,) = to.iterdir()
    return repaired


def refuse_what_does_not_belong(wheel: Path) -> None:
    """Raises SystemExit if something is missing, or is there that a site must not get."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    missing = [start for start in LEAST if not any(name.startswith(start) for name in names)]
    extra = [name for name in names if NEVER.search(name)]
    if missing or extra:
        raise SystemExit(f"{wheel.name}: missing {missing}, not wanted {extra[:5]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
