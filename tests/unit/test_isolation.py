"""A third party's model in its own process: whatever it does, the node gets an output or a reason, and lives on."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from config.reasons import ReasonCode
from inference.errors import ModelError, UnsuitableSeries
from inference.isolation import host, known_codes, scratch
from inference.isolation.answer import TooMuch, decode_output
from inference.isolation.host import IsolatedModel
from inference.isolation.wire import JSON_SIZE, encode_output
from inference.models.cards import Limits, read_card, shipped_folder
from inference.output_check import check_output
from inference.plug import Code
from tests import hostile_models
from tests.isolated import CPU, LIMITS, a_volume, loaded
from tests.programs import wait_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(shipped_folder() / "demonstration", tmp_path_factory.mktemp("model") / "demonstration")


@pytest.fixture(autouse=True, scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where scratch folders go."""
    made = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(made))
        yield made


def refused(name: str, folder: Path, limits: Limits = LIMITS) -> UnsuitableSeries:
    with pytest.raises(UnsuitableSeries) as caught:
        loaded(name, folder, limits).analyse(a_volume())
    return caught.value


def test_an_output_comes_back_as_the_model_gave_it(folder: Path) -> None:
    volume = a_volume()
    output = loaded("works", folder).analyse(volume)
    expected = hostile_models.answer(volume)
    check_output(output, volume)
    assert output.measurements == (replace(expected.measurements[0], value=float(expected.measurements[0].value)),)
    assert np.array_equal(output.segments[0].mask, expected.segments[0].mask)
    assert replace(output.segments[0], mask=None).__dict__ == replace(expected.segments[0], mask=None).__dict__
    assert np.array_equal(output.heat, expected.heat)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("reads_address_0", ReasonCode.MODEL_CRASHED, "SIGSEGV"),
        ("raises", ReasonCode.MODEL_CRASHED, "failed with KeyError;"),
        ("ends_without_an_answer", ReasonCode.MODEL_CRASHED, "status 0 and gave no answer"),
        ("exits", ReasonCode.MODEL_CRASHED, "status 0 and gave no answer"),
        ("wants_50_gb", ReasonCode.MODEL_MEMORY, "2048 MiB"),
        ("wants_much_of_torch", ReasonCode.MODEL_MEMORY, "2048 MiB"),
        ("prints_10_gb", ReasonCode.MODEL_TOO_MUCH, "printed more than 16 MiB"),
        ("fills_the_disk", ReasonCode.MODEL_TOO_MUCH, "folder than the 64 MiB"),
        ("writes_one_large_file", ReasonCode.MODEL_TOO_MUCH, "folder than the 64 MiB"),
        ("sends_10_gb", ReasonCode.MODEL_TOO_MUCH, "answered with more than 260 MiB"),
        ("sends_nonsense", ReasonCode.MODEL_TOO_MUCH, "gave more than"),
        ("answers_another_grid", ReasonCode.MODEL_OUTPUT, "the grid of the volume"),
        ("answers_nan", ReasonCode.MODEL_OUTPUT, "finite"),
        ("answers_something_else", ReasonCode.MODEL_OUTPUT, "found dict"),
        ("answers_misspelt_code", ReasonCode.MODEL_CODE, "39607009 is not a code of SCT"),
        ("refuses", ReasonCode.SLICE_THICKNESS, "The slices are 7 mm thick; the model needs 2 mm."),
        ("refuses_without_a_reason", ReasonCode.MODEL_OUTPUT, "without a reason that the node knows"),
    ],
)
def test_whatever_a_model_does_ends_its_job_with_a_reason(folder: Path, name: str, code: str, said: str) -> None:
    error = refused(name, folder)
    assert error.code == code
    assert said in error.sentence and error.sentence.endswith(".") and error.sentence.isprintable()
    assert "patient" not in error.sentence  # what it raised quotes one


def test_a_volume_that_the_card_was_not_made_for_never_reaches_the_model(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(host, "_Process", None)
    model = IsolatedModel("tests.hostile_models:works").load(folder, read_card(folder), CPU)
    with pytest.raises(UnsuitableSeries) as caught:
        model.analyse(a_volume())
    assert caught.value.code == ReasonCode.TOO_FEW_SLICES


def test_an_endless_loop_ends_at_the_cards_limit(folder: Path) -> None:
    error = refused("loops", folder, replace(LIMITS, time_s=2))
    assert (error.code, "the 2 s that its card allows" in error.sentence) == (ReasonCode.MODEL_TIMEOUT, True)


def test_shared_memory_counts_although_the_kernel_does_not_limit_it(folder: Path) -> None:
    assert refused("shares_much", folder, replace(LIMITS, memory_mb=512)).code == ReasonCode.MODEL_MEMORY


def test_a_model_that_lacks_its_files_is_a_mistake_of_the_site(folder: Path) -> None:
    with pytest.raises(ModelError, match="weights missing"):
        loaded("has_no_weights", folder).analyse(a_volume())


def test_what_a_model_prints_is_kept_for_a_person_alone(folder: Path) -> None:
    model = loaded("raises", folder)
    with pytest.raises(UnsuitableSeries):
        model.analyse(a_volume())
    assert model.printed.endswith('KeyError: "a patient\'s name"\n')


def test_a_crash_is_tried_once_more_and_a_model_that_hangs_is_not(folder: Path, monkeypatch) -> None:
    started = []
    start = host._Process.__init__
    monkeypatch.setattr(host._Process, "__init__", lambda *given: (started.append(given), start(*given))[1])
    refused("reads_address_0", folder)
    assert len(started) == 2
    refused("loops", folder, replace(LIMITS, time_s=1))
    assert len(started) == 3


@pytest.fixture(scope="module")
def reached(folder: Path, temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a model saw that tried to reach out, and what it was refused."""
    secret = tmp_path_factory.mktemp("store") / "image.dcm"
    secret.write_text("Doe Jane")
    held = os.open(secret, os.O_RDONLY)
    os.set_inheritable(held, True)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(secret.with_name("socket")))
        local.listen()
        targets = {
            "node": os.getpid(),
            "secret": str(secret),
            "port": server.getsockname()[1],
            "socket": str(secret.with_name("socket")),
            "folder": str(folder),
        }
        (folder / "targets.json").write_text(json.dumps(targets))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DICOM_NODE_INDEX__URL", "postgresql://node:password@localhost/node")
            output = loaded("reaches_out", folder).analyse(a_volume())
    os.close(held)
    return dict(output.trace)


def test_a_model_reaches_no_network_no_process_and_no_file_of_the_node(reached: dict) -> None:
    assert reached["refused"] == {
        "internet socket": "EPERM",
        "socket in the file system": "EPERM",
        "fork": "EPERM",
        "signal": "EPERM",
        "environment": "EACCES",
        "memory": "EACCES",
        "file": "EACCES",
        "checkout": "EACCES",
        "list": "EACCES",
        "write": "EACCES",
        "own folder": "EACCES",
    }


def test_a_model_inherits_no_secret_and_no_descriptor_and_learns_no_name(reached: dict) -> None:
    seen = reached["seen"]
    assert not [name for name in seen["environment"] if name.startswith("DICOM_NODE")]
    assert not [target for target in seen["descriptors"] if "image.dcm" in target]
    assert len([target for target in seen["descriptors"] if target.startswith("socket:")]) == 1
    assert "Doe" not in json.dumps(seen) and "1.2.3" not in json.dumps(seen)
    assert "age_years=60.0," in seen["volume"]


def test_a_scratch_folder_is_empty_before_and_gone_afterwards(reached: dict, temporary: Path) -> None:
    assert reached["seen"]["scratch"].startswith(str(temporary))
    assert list(temporary.iterdir()) == []


def test_the_scratch_folder_of_a_killed_node_is_removed_and_one_in_use_is_not(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = temporary / "dicom-node-model-left"
    (left / "deep").mkdir(parents=True)
    monkeypatch.setattr(scratch, "_SETTLED_S", -1.0)
    with scratch.scratch_folder() as first, scratch.scratch_folder() as second:
        assert not left.exists() and first.is_dir() and second.is_dir()
    assert list(temporary.iterdir()) == []


def test_a_folders_use_counts_what_is_on_the_disk_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "large").write_bytes(b"x" * (1 << 20))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "large")
    (tmp_path / "in" / "file").write_bytes(b"x" * 8192)
    assert 8192 <= scratch.used_bytes(tmp_path / "in") < 1 << 20


def run_script(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


KERNEL_THAT_REFUSES = """
import sys
from pathlib import Path
from inference.isolation.sandbox import Rule, filter_calls
filter_calls([Rule(name) for name in ("unshare", "seccomp", "landlock")], {"seccomp": 317, "landlock": 444})
from inference.errors import ModelError
from tests.isolated import a_volume, loaded
folder = Path(sys.argv[1])
print(len(loaded("works", folder, required=False).analyse(a_volume()).measurements))
try:
    loaded("works", folder)
except ModelError as error:
    print(error)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the script names system calls by their numbers there")
def test_where_the_kernel_refuses_a_model_runs_only_if_the_site_allows_it(folder: Path) -> None:
    allowed, said = run_script(KERNEL_THAT_REFUSES, str(folder)).splitlines()
    assert allowed == "1"
    assert "does not let tests.hostile_models:works be shut in" in said and 'unconfined_models = "allow"' in said
    for lock in ("seccomp", "network namespace", "Landlock"):
        assert f"{lock}: Operation not permitted" in said


NODE_THAT_IS_KILLED = """
import sys
from pathlib import Path
from tests.isolated import a_volume, loaded
loaded("loops", Path(sys.argv[1])).analyse(a_volume())
"""


def test_a_models_process_ends_with_the_node(folder: Path, tmp_path: Path) -> None:
    there = {**os.environ, "TMPDIR": str(tmp_path)}  # its scratch folder stays until a node starts a model again
    node = subprocess.Popen([sys.executable, "-c", NODE_THAT_IS_KILLED, str(folder)], env=there)
    try:
        model = wait_for(lambda: _models_process(node.pid))
    finally:
        node.kill()
        node.wait()
    wait_for(lambda: _ended(model))


def _ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _models_process(node: int) -> psutil.Process | None:
    """The process of a model, once it has shut itself in; the one that tries the locks ends before."""
    for child in psutil.Process(node).children():
        with contextlib.suppress(psutil.Error):
            if "dicom-node-model-" in child.cwd():
                return child
    return None


def test_a_stop_that_reaches_the_whole_service_lets_a_job_under_way_end(folder: Path) -> None:
    output = loaded("is_told_to_stop_with_the_node", folder).analyse(a_volume())
    assert output.trace == {"leads its session": True}  # so that a terminal's Ctrl-C does not reach it either


def _code_of(model: host.IsolatedLoaded) -> str:
    with pytest.raises(UnsuitableSeries) as caught:
        model.analyse(a_volume())
    return caught.value.code


def test_jobs_of_one_node_run_side_by_side_and_one_that_crashes_harms_no_other(folder: Path) -> None:
    codes: list[str] = []
    crash = threading.Thread(target=lambda: codes.append(_code_of(loaded("reads_address_0", folder))))
    crash.start()
    output = loaded("works", folder).analyse(a_volume())
    crash.join()
    assert codes == [ReasonCode.MODEL_CRASHED] and len(output.segments) == 1


MASK = np.zeros((6, 40, 44), bool)


def sent(**changes) -> bytes:
    """A model's answer, from an output with these changes."""
    return b"".join(encode_output(hostile_models.answer(a_volume(), **changes)))


def with_json(message: bytes, change) -> bytes:
    """The answer with its JSON changed, as the code of a third party may do it."""
    (size,) = JSON_SIZE.unpack_from(message)
    table = json.loads(message[8 : 8 + size])
    change(table)
    text = json.dumps(table).encode()
    return JSON_SIZE.pack(len(text)) + text + message[8 + size :]


def segments(**changes) -> dict:
    (segment,) = hostile_models.answer(a_volume()).segments
    return {"segments": (replace(segment, **changes),)}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "Expecting value"),
        (JSON_SIZE.pack(200_000) + b"[" * 200_000, "recursion"),
        (JSON_SIZE.pack(2) + b"[]", "expected a table"),
        (sent(**segments(mask=MASK[:-1])), "expected bool .*grid of the volume"),
        (sent(**segments(mask=MASK.astype(np.float32))), "float32"),
        (sent(**segments(mask=None)), "grid of the volume"),
        (sent()[:-1], "heat: cut off"),
        (sent(statements=("one\x1b[2Jtwo",)), "statements.0: expected at most 1024 printable"),
        (sent(statements=("x" * 1025,)), "statements.0: expected at most 1024 printable"),
        (sent(measurements=()), "neither a measurement nor a finding"),
        (with_json(sent(), lambda table: table.update(more=1)), "unknown .'more'"),
        (with_json(sent(), lambda table: table["segments"][0].pop("type")), "missing .'type'"),
        (with_json(sent(), lambda table: table["segments"].append(1)), "expected a table"),
        (with_json(sent(), lambda table: table.update(segments={})), "expected a list"),
        (with_json(sent(), lambda table: table["measurements"][0].update(value="12")), "value: expected float"),
        (with_json(sent(), lambda table: table["measurements"][0].update(value=float("nan"))), "NaN"),
        (with_json(sent(), lambda table: table["measurements"][0].update(value=1e999)), "finite|Infinity"),
        (with_json(sent(), lambda table: table["measurements"][0].update(segment="Liver")), "which the output lacks"),
        (with_json(sent(), lambda table: table["heat"].update(shape=[1, 40, 44])), "grid of the volume"),
        (with_json(sent(), lambda table: table["heat"].update(shape="x")), "grid of the volume"),
    ],
)
def test_an_answer_that_is_not_an_output_of_the_volume_is_refused(message: bytes, said: str) -> None:
    with pytest.raises((ValueError, RecursionError), match=said):
        decode_output(message, a_volume(), 1 << 30)


@pytest.mark.parametrize(
    "message",
    [
        JSON_SIZE.pack(1 << 63),
        sent(trace={"text": "x" * (5 << 20)}),
        with_json(sent(), lambda table: table.update(segments=table["segments"] * 10_000)),
    ],
)
def test_an_answer_larger_than_the_model_could_hold_is_refused(message: bytes) -> None:
    with pytest.raises(TooMuch):
        decode_output(message, a_volume(), 64 << 20)


@pytest.mark.parametrize(
    ("value", "scheme"),
    [("112031", "DCM"), ("39607008", "SCT"), ("24627-2", "LN"), ("1", "99MAKER")]
    + [(unit, "UCUM") for unit in ("mL", "%", "1", "[hnsf'U]", "mm[Hg]", "kg/m2", "g.m-2", "{ratio}", "10*-3.mm2/s")],
)
def test_codes_that_exist_are_known(value: str, scheme: str) -> None:
    known_codes.require_known(Code(value, scheme, "x"))


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        ("999999", "DCM"),
        ("39607009", "SCT"),  # the check digit
        ("39607108", "SCT"),
        ("39607", "SCT"),
        ("24627-3", "LN"),
        ("litre", "UCUM"),
        ("mL/", "UCUM"),
        ("T-28000", "SRT"),
        ("1", "LOCAL"),
    ],
)
def test_codes_that_do_not_exist_are_refused(value: str, scheme: str) -> None:
    with pytest.raises(known_codes.UnknownCode):
        known_codes.require_known(Code(value, scheme, "x"))
