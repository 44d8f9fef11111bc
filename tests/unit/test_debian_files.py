"""The Debian package and the systemd unit, as far as they can be looked at without being installed."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from config.load import load_settings

ROOT = Path(__file__).resolve().parents[2]
DEBIAN, UNIT = ROOT / "packaging" / "debian", ROOT / "packaging" / "systemd" / "dicom-node.service"
MOST_EXPOSED = 25
"""Tenths of the score of `systemd-analyze security`; 10.0 is a service without any lock."""


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def run(*command: str | Path, **variables: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_finds_no_mistake_in_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "dicom-node.service"
    unit.write_text(UNIT.read_text().replace("/opt/dicom-node/current/bin/dicom-node", "/bin/true"))
    said = run(need("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", unit)
    assert "dicom-node.service" not in said


def test_the_unit_stays_as_shut_as_it_is() -> None:
    run(need("systemd-analyze"), "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", UNIT)


def test_the_unit_kills_nothing_before_the_node_gave_up_by_itself() -> None:
    from dicom_node.runtime.supervisor import DO_NOT_RESTART, DRAIN_S

    unit = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), flags=re.MULTILINE))
    assert float(unit["TimeoutStopSec"].rstrip("s")) >= DRAIN_S + 20
    assert unit["RestartPreventExitStatus"] == str(DO_NOT_RESTART)
    assert unit["StartLimitIntervalSec"] == "0", "systemd gives up while a database is away"


def test_the_packages_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DICOM_NODE_")]:
        monkeypatch.delenv(name)
    for file in (DEBIAN / "node.toml", ROOT / "packaging" / "container" / "node.toml"):
        assert load_settings(file).data_dir == Path("/var/lib/dicom-node")
    # Its comments are settings too, once they are none.
    text = re.sub(r"^# (?=\[\[|\w+ = )", "", (DEBIAN / "node.toml").read_text(), flags=re.MULTILINE)
    assert tomllib.loads(text)["destinations"][0]["name"] == "pacs"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a wheel that holds nothing, built twice."""
    need("dpkg-deb")
    folder = tmp_path_factory.mktemp("deb")
    wheel = folder / "dicom_node-9.8.7-cp311-abi3-manylinux2014_x86_64.whl"
    wheel.write_bytes(b"no wheel")
    built = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        run(DEBIAN / "build", wheel, folder / name, SOURCE_DATE_EPOCH="1700000000")
        built.append(folder / name / "dicom-node_9.8.7_amd64.deb")
    assert built[0].read_bytes() == built[1].read_bytes()
    return built[0]


def test_the_package_has_the_unit_the_wheel_and_settings_that_not_everybody_reads(package: Path) -> None:
    listed = {
        line.split(maxsplit=5)[5]: line.split()[:2] for line in run("dpkg-deb", "--contents", package).splitlines()
    }
    assert listed["./lib/systemd/system/dicom-node.service"] == ["-rw-r--r--", "root/root"]
    assert listed["./etc/dicom-node/node.toml"] == ["-rw-r-----", "root/root"]
    assert listed["./usr/bin/dicom-node"][0] == "-rwxr-xr-x"
    assert "./usr/share/dicom-node/wheels/dicom_node-9.8.7-cp311-abi3-manylinux2014_x86_64.whl" in listed
    for document in ("CHANGELOG.md", "docs/runbook.md", "docs/guides/tls.md", "packaging/monitoring/alerts.yml"):
        assert f"./usr/share/doc/dicom-node/{document}" in listed
    assert {owner for _, owner in listed.values()} == {"root/root"}
    fields = run("dpkg-deb", "--field", package)
    assert "Version: 9.8.7" in fields
    assert "Architecture: amd64" in fields


def test_the_package_pins_every_library_that_the_lock_pins_without_hashes(package: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "--extract", package, tmp_path)
    pinned = (tmp_path / "usr/share/dicom-node/constraints.txt").read_text().splitlines()
    assert "pydicom==3.0.2" in pinned
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+( ; .*)?", one) for one in pinned)
    assert not any("sha256" in one for one in pinned)
    lock = (ROOT / "requirements.lock").read_text()
    assert len(pinned) == len(re.findall(r"^[A-Za-z0-9._-]+==", lock, flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["build", "postinst", "prerm", "postrm", "dicom-node", "dicom-node-environment"])
def test_every_script_is_one(name: str) -> None:
    assert os.access(DEBIAN / name, os.X_OK)
    run("sh", "-n", DEBIAN / name)
