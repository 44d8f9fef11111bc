"""Decoding in a process of its own: what its death costs, what it may take, and how it ends."""

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import pytest
from pydicom import dcmread

from inference.errors import CorruptInstance
from inference.volume import decoding_process
from inference.volume.decoder_pool import POOL, DecoderFailed, DecoderPool
from inference.volume.decoding_process import JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE
from inference.volume.load import load
from tests.lossless_jpeg import encode as lossless_jpeg
from tests.programs import wait_for
from tests.unit.ct_series import noise, save, slice_dataset

PLANE = (np.add.outer(np.arange(64), np.arange(64)) * 16 + noise(1, 64, 64, 0, 30)[0]).astype(np.uint16)
STREAM = imagecodecs.ljpeg_encode(PLANE, bitspersample=16)


def changed(places: dict[int, int]) -> bytes:
    stream = bytearray(STREAM)
    for place, value in places.items():
        stream[place] = value
    return bytes(stream)


# Found by the campaign in tests/fuzz: each ends the decoder of JPEG Lossless with a segmentation fault.
WITHOUT_TABLE = b"\xff\xd8\xff\xe0" + lossless_jpeg(PLANE)[4:]
KILLERS = {
    "no Huffman table": WITHOUT_TABLE,
    "an image without columns": changed({39: 0}),
    "a damaged marker of the Huffman table": changed({2: 8, 51: 5}),
}


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    made = DecoderPool()
    yield made
    made.end()


def write_compressed(folder: Path, encode: Callable[[int, np.ndarray], bytes], slices: int = 3) -> list[Path]:
    return [
        save(
            slice_dataset(PLANE, 2.0 * index),
            folder / f"{index}.dcm",
            "1.2.840.10008.1.2.4.70",
            lambda words, index=index: encode(index, words),  # type: ignore[misc]
        )
        for index in range(slices)
    ]


def lossless_jpegs(folder: Path, streams: Sequence[bytes]) -> list[Path]:
    """One image of 64 x 64 for each stream, from foot to head."""
    return write_compressed(folder, lambda index, words: streams[index], len(streams))


@pytest.mark.parametrize("stream", KILLERS.values(), ids=KILLERS)
def test_a_stream_that_kills_its_decoder_costs_its_own_frame_alone(pool: DecoderPool, stream: bytes) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", "import sys, imagecodecs; imagecodecs.ljpeg_decode(sys.stdin.buffer.read())"],
        input=stream,
        capture_output=True,
        timeout=60,
    )
    if killed.returncode >= 0:
        pytest.skip("this build of the decoder survives the stream")
    with pytest.raises(DecoderFailed):
        pool.decode(JPEG_LOSSLESS, [stream], 64, 64)
    assert np.array_equal(pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64), PLANE)


def test_a_series_whose_stream_kills_the_decoder_is_corrupt_by_name_and_a_neighbour_is_decoded(tmp_path: Path) -> None:
    good = write_compressed(tmp_path / "good", lambda index, words: STREAM)
    bad = write_compressed(tmp_path / "bad", lambda index, words: WITHOUT_TABLE if index == 1 else STREAM)
    uid = dcmread(bad[1], stop_before_pixels=True).SOPInstanceUID
    results: list[np.ndarray] = []
    neighbour = threading.Thread(target=lambda: results.extend(load(good).hu for _ in range(5)))
    neighbour.start()
    with pytest.raises(CorruptInstance, match=f"instance {uid}: .* ends the decoder"):
        load(bad)
    neighbour.join()
    assert len(results) == 5 and all(np.array_equal(hu[0], PLANE.astype(int) - 1024) for hu in results)


def test_a_process_that_something_else_kills_is_replaced_in_silence(pool: DecoderPool) -> None:
    pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64)
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGKILL)
    assert np.array_equal(pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64), PLANE)
    assert pool.pids() != [pid]
    assert not psutil.pid_exists(pid)  # waited for: not a zombie


def test_one_process_decodes_frame_after_frame(pool: DecoderPool) -> None:
    pids = set()
    for _ in range(5):
        pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64)
        pids.update(pool.pids())
    assert len(pids) == 1
    pool.end()
    assert not psutil.pid_exists(pids.pop())


def test_threads_decode_at_the_same_time(pool: DecoderPool) -> None:
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.extend(pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64) for _ in range(20)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120 and all(np.array_equal(words, PLANE) for words in found)
    assert len(pool.pids()) <= (os.cpu_count() or 1)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_the_whole_node_lets_a_frame_under_way_be_decoded(pool: DecoderPool, signal_number: int) -> None:
    pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64)
    before = pool.pids()
    os.kill(before[0], signal_number)
    time.sleep(0.1)
    pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64)
    assert pool.pids() == before


def run_length_bomb(plane_bytes: int) -> list[bytes]:
    runs = b"\x81\0" * (plane_bytes // 2)  # 128 zeros for every two bytes
    return [struct.pack("<Q", len(runs)), runs, runs]


def bomb(name: str) -> tuple[int, list[bytes]]:
    if name == "run-length":
        return RLE, run_length_bomb(16 << 20)
    zeros = np.zeros((12000, 12000), np.uint16)
    if name == "JPEG Lossless":
        return JPEG_LOSSLESS, [imagecodecs.ljpeg_encode(zeros, bitspersample=16)]
    if name == "JPEG-LS":
        return JPEG_LS, [imagecodecs.jpegls_encode(zeros)]
    return JPEG_2000, [imagecodecs.jpeg2k_encode(zeros, codecformat="j2k", reversible=True)]


@pytest.mark.parametrize("name", ["run-length", "JPEG Lossless", "JPEG-LS", "JPEG 2000"])
def test_a_stream_that_holds_more_than_it_was_promised_runs_into_the_limit_of_memory(
    pool: DecoderPool, name: str
) -> None:
    codec, parts = bomb(name)
    with pytest.raises(DecoderFailed):
        pool.decode(codec, parts, 64, 64)
    for pid in pool.pids():  # none if it died of it
        status = Path(f"/proc/{pid}/status").read_text()
        held_kib = int(status.partition("VmHWM:")[2].split()[0])
        assert held_kib < 200 << 10  # each bomb holds 274 MiB and more


@pytest.mark.parametrize("side", [64, 512, 2048])
def test_whole_frames_stay_within_their_limits(pool: DecoderPool, side: int) -> None:
    plane = noise(1, side, side, 0, 16384)[0].astype(np.uint16)
    for codec, stream in (
        (JPEG_LOSSLESS, imagecodecs.ljpeg_encode(plane, bitspersample=16)),
        (JPEG_LS, imagecodecs.jpegls_encode(plane)),
        (JPEG_2000, imagecodecs.jpeg2k_encode(plane, codecformat="j2k", reversible=True)),
        (JPEG_2000, imagecodecs.htj2k_encode(plane, reversible=True)),
    ):
        assert np.array_equal(pool.decode(codec, [stream], side, side), plane)


def test_a_decoder_that_does_not_come_to_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hanging = tmp_path / "hang.py"
    hanging.write_text(
        "import sys\nfrom inference.volume import decoding_process as d\n"
        "def decode(*_):\n    while True:\n        pass\n"
        "d.decode = decode\n"
        "d._CPU_S, d._CPU_S_A_PIXEL = 0.2, 0.0\nd.main()\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: start([sys.executable, str(hanging), command[-1]], **options)
    )
    pool = DecoderPool()
    with pytest.raises(DecoderFailed) as failed:
        pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64)
    assert failed.value.died


def test_a_process_that_does_not_start_says_nothing_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: start([sys.executable, "-c", "exit(3)"], **options)
    )
    with pytest.raises(RuntimeError, match=r"does not start \(status 3\)"):
        DecoderPool().decode(JPEG_LOSSLESS, [STREAM], 64, 64)


def test_the_process_ends_with_its_parent_however_that_ends() -> None:
    program = (
        "import sys, time, imagecodecs, numpy\n"
        "from inference.volume.decoder_pool import POOL\n"
        "stream = imagecodecs.ljpeg_encode(numpy.zeros((8, 8), numpy.uint16), bitspersample=16)\n"
        "POOL.decode(1, [stream], 8, 8)\n"
        "print(*POOL.pids(), flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
    )
    for sleep, kill in (("60", True), ("0", False)):
        parent = subprocess.Popen([sys.executable, "-c", program, sleep], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if kill:
            parent.kill()
        parent.wait(30)
        wait_for(lambda pid=pid: not psutil.pid_exists(pid), 10, "the decoding process's end")  # type: ignore[misc]


def decode_in_child(queue: "multiprocessing.Queue[tuple[bool, list[int]]]") -> None:
    words = POOL.decode(JPEG_LOSSLESS, [STREAM], 64, 64)
    queue.put((bool(np.array_equal(words, PLANE)), POOL.pids()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_child_process_has_decoders_of_its_own(method: str) -> None:
    POOL.decode(JPEG_LOSSLESS, [STREAM], 64, 64)
    ours = POOL.pids()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=decode_in_child, args=(queue,))  # type: ignore[attr-defined]
    child.start()
    equal, theirs = queue.get(timeout=60)
    child.join(30)
    assert equal and not set(theirs) & set(ours)
    assert np.array_equal(POOL.decode(JPEG_LOSSLESS, [STREAM], 64, 64), PLANE)
    assert POOL.pids() == ours


def test_it_imports_no_more_than_decoding_needs() -> None:
    program = "import sys, inference.volume.decoding_process as d; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "scipy", "pydicom", "sqlalchemy"} & set(loaded)


def test_the_process_knows_no_secret_of_the_node(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_DATABASE_URL", "postgresql://node:secret@db/node")
    pool.decode(JPEG_LOSSLESS, [STREAM], 64, 64)
    assert b"secret" not in Path(f"/proc/{pool.pids()[0]}/environ").read_bytes()


def test_uncompressed_images_need_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderPool, "_take", lambda self: pytest.fail("a process was asked for"))
    paths = [save(slice_dataset(PLANE, 2.0 * index), tmp_path / f"{index}.dcm") for index in range(2)]
    assert np.array_equal(load(paths).hu[1], PLANE.astype(int) - 1024)


def test_the_limit_of_time_allows_fifty_times_what_frames_take() -> None:
    assert decoding_process.cpu_limit_s(512 * 512) > 50 * 0.06
