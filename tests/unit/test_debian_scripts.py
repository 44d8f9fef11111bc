"""The scripts of the Debian package, run for real by sh in a folder that stands for the root of a machine."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEBIAN, CONTAINER = ROOT / "packaging" / "debian", ROOT / "packaging" / "container"
RELEASE = "9.8.7"

FAKES = {
    # What needs root, systemd or a package index, as far as the scripts see it.
    "id": "echo 0",
    "setpriv": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "getent": "exit 0",
    "chown": 'shift; exec ls -d "$@" >/dev/null',
    "install": 'for last; do :; done; exec mkdir -p "$last"',
    "deluser": "exit 0",
    "systemctl": '[ "$1" != try-restart ] || exit "${RESTART_ENDS:-0}"',
    "date": 'echo "$NOW"',
    "python3": """
        mkdir -p "$3/bin"
        for each in python dicom-node; do echo "#!/bin/sh" >"$3/bin/$each"; chmod +x "$3/bin/$each"; done""",
}


class Machine:
    """A root folder, and the package's scripts with their paths moved below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("bin", "etc/default", "etc/dicom-node", "opt/dicom-node", "run/systemd/system", "var/lib"):
            (root / folder).mkdir(parents=True)
        for name, script in FAKES.items():
            self.program(f"bin/{name}", script)
        self.file(f"usr/share/dicom-node/wheels/dicom_node-{RELEASE}-py3-none-any.whl", "")
        self.program("bin/dicom-node-environment", self.moved("dicom-node-environment"))

    def file(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, name: str, script: str) -> None:
        self.file(name, script if script.startswith("#!") else f"#!/bin/sh\n{script}\n").chmod(0o755)

    def moved(self, script: str) -> str:
        return re.sub(r"(?<![\w.])/(var|etc|opt|run|usr)/", rf"{self.root}/\1/", (DEBIAN / script).read_text())

    def run(self, script: str, *words: str, **variables: str) -> str:
        """Call a script of the package; returns what it said, which includes its errors."""
        path = f"{self.root}/bin:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", self.file(f"scripts/{script}", self.moved(script)), *words],
            env={"NOW": "20990101T000000", **variables, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def environments(self) -> set[str]:
        return {path.name for path in (self.root / "opt/dicom-node").glob("*-*T*")}

    def current(self) -> str:
        return (self.root / "opt/dicom-node/current").readlink().name


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root")


def test_the_command_line_reads_passwords_as_systemd_does_and_runs_none(machine: Machine) -> None:
    machine.program("opt/dicom-node/current/bin/dicom-node", "exec env -0")
    mark = machine.root / "ran"
    machine.file(
        "etc/dicom-node/environment",
        "\n# A comment\n; DICOM_NODE_C=another\n"
        f"DICOM_NODE_URL=postgresql://u:a$HOME&touch {mark}; $(touch {mark})`touch {mark}`@h/db?x=1\n"
        "  DICOM_NODE_BLANKS =  two words \t\r\n"
        "DICOM_NODE_BASE64=c2VjcmV0=\n"
        "DICOM_NODE_ESCAPED=a\\$b\\\\c\\&\n"
        "DICOM_NODE_SINGLE='a\\b $HOME'\n"
        'DICOM_NODE_DOUBLE="a\\"b\\\\c\\d $HOME "\n'
        "DICOM_NODE_INSIDE=1\"2'\n"
        "DICOM_NODE_EMPTY=\n"
        f"export DICOM_NODE_E=1\nno assignment; touch {mark}\n"
        "DICOM_NODE_LAST=no end of line",
    )
    said = machine.run("dicom-node", "status")
    got = dict(line.split("=", 1) for line in said.split("\0") if line.startswith("DICOM_NODE_"))
    assert not mark.exists()
    assert got.pop("DICOM_NODE_CONFIG") == f"{machine.root}/etc/dicom-node/node.toml"
    assert got == {
        "DICOM_NODE_URL": f"postgresql://u:a$HOME&touch {mark}; $(touch {mark})`touch {mark}`@h/db?x=1",
        "DICOM_NODE_BLANKS": "two words",
        "DICOM_NODE_BASE64": "c2VjcmV0=",
        "DICOM_NODE_ESCAPED": "a$b\\c&",
        "DICOM_NODE_SINGLE": "a\\b $HOME",
        "DICOM_NODE_DOUBLE": 'a"b\\c\\d $HOME ',
        "DICOM_NODE_INSIDE": "1\"2'",
        "DICOM_NODE_EMPTY": "",
        "DICOM_NODE_LAST": "no end of line",
    }


def test_the_package_configures_a_machine_whose_settings_were_removed(machine: Machine) -> None:
    assert "environment is not made yet" in machine.run("postinst", "configure", RELEASE)
    assert not (machine.root / "etc/dicom-node/node.toml").exists()


def test_the_settings_are_readable_by_no_other_user(machine: Machine) -> None:
    settings = machine.file("etc/dicom-node/node.toml", "")
    settings.chmod(0o644)
    machine.run("postinst", "configure", RELEASE)
    assert settings.stat().st_mode & 0o777 == 0o640
    assert settings.parent.stat().st_mode & 0o777 == 0o750


def test_a_node_that_does_not_come_up_again_leaves_the_package_configured_and_says_what_to_do(machine: Machine) -> None:
    machine.file("etc/default/dicom-node", "FETCH=yes\n")
    said = machine.run("postinst", "configure", RELEASE, RESTART_ENDS="1")
    assert "journalctl -u dicom-node" in said
    assert "systemctl restart dicom-node" in said
    assert "journalctl" not in machine.run("postinst", "configure", RELEASE, NOW="20990102T000000")


def test_what_an_interrupted_run_left_holds_up_no_later_one(machine: Machine) -> None:
    (machine.root / "opt/dicom-node/.current").symlink_to("9.8.6-20980101T000000")
    machine.run("dicom-node-environment")
    assert machine.current() == f"{RELEASE}-20990101T000000"


def test_the_environment_that_a_process_runs_from_stays_until_it_ends(machine: Machine) -> None:
    running = machine.root / "opt/dicom-node/9.8.6-20980101T000000"
    (running / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "/bin/sleep", running / "bin/python")
    (running.parent / "current").symlink_to(running.name)
    made = [f"{RELEASE}-2099010{day}T000000" for day in range(1, 5)]
    with subprocess.Popen([running / "bin/python", "60"]) as process:
        try:
            for name in made[:3]:
                machine.run("dicom-node-environment", NOW=name.partition("-")[2])
            assert machine.current() == made[2]
            assert machine.environments() == {running.name, made[1], made[2]}
        finally:
            process.kill()
    machine.run("dicom-node-environment", NOW=made[3].partition("-")[2])
    assert machine.environments() == {made[2], made[3]}


def test_purging_deletes_passwords_and_no_data(machine: Machine) -> None:
    index = machine.file("var/lib/dicom-node/node.db", "rows")
    machine.file("etc/dicom-node/environment", "DICOM_NODE_STORAGE__DATABASE_URL=postgresql://u:secret@h/db\n")
    machine.run("postrm", "remove")
    assert (machine.root / "etc/dicom-node/environment").exists()
    said = machine.run("postrm", "purge")
    assert "holds patient data and the audit trail, and stays" in said
    assert index.read_text() == "rows"
    assert not (machine.root / "etc/dicom-node").exists()


def test_purging_names_the_files_that_a_person_put_beside_the_settings(machine: Machine) -> None:
    key = machine.file("etc/dicom-node/tls/node.key", "secret")
    said = machine.run("postrm", "purge")
    assert f"{machine.root}/etc/dicom-node holds files that are not the package's, and stays: tls" in said
    assert key.exists()


def test_orthancs_rule_sends_to_a_modality_that_its_settings_define() -> None:
    modalities = json.loads((CONTAINER / "orthanc.json").read_text())["DicomModalities"]
    sent_to = re.findall(r"/modalities/(\w+)/store", (CONTAINER / "orthanc-route.lua").read_text())
    assert sent_to == list(modalities)
