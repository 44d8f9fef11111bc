"""What the benchmark of turnaround sends, and the network that it sends it over."""

import socket
import threading
from pathlib import Path

import numpy as np
from pydicom import dcmread

from benchmarks.chest_series import copy_chest, make_chest
from benchmarks.pacing import paced


def test_a_copied_chest_has_the_same_pixels_and_belongs_to_another_patient(tmp_path: Path) -> None:
    chest = make_chest(tmp_path / "chest", 3, size=64)
    copied = copy_chest(chest, tmp_path / "copy", 7)
    before, after = ([dcmread(file) for file in one.files] for one in (chest, copied))
    assert all(np.array_equal(a.pixel_array, b.pixel_array) for a, b in zip(before, after, strict=True))
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert not {one[name].value for one in before} & {one[name].value for one in after}, name
    assert {one.SeriesInstanceUID for one in after} == {copied.series_uid}
    assert {one.StudyInstanceUID for one in after} == {copied.study_uid}
    assert [one.SOPInstanceUID for one in after] == [one.file_meta.MediaStorageSOPInstanceUID for one in after]
    assert [one.InstanceNumber for one in after] == [1, 2, 3]


def test_a_paced_connection_passes_every_byte_both_ways() -> None:
    content = bytes(range(256)) * 2000
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        taker, _ = listener.accept()
        with taker:
            taken = b"".join(iter(lambda: taker.recv(65536), b""))
            taker.sendall(taken[::-1])

    thread = threading.Thread(target=answer)
    thread.start()
    with paced(listener.getsockname()[1], 10e6) as port, socket.create_connection(("127.0.0.1", port)) as sender:
        sender.sendall(content)
        sender.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: sender.recv(65536), b"")) == content[::-1]
    thread.join()
    listener.close()
