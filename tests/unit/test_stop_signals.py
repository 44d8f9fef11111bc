"""A process is told to stop, whichever of its threads the kernel gives the signal to."""

import subprocess
import sys

PROGRAM = """
import signal, threading, time
from dicom_node.runtime.signals import stop_on_signals

stop = stop_on_signals()
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
threading.Timer(0.5, signal.pthread_kill, (other.ident, signal.SIGTERM)).start()
stop.wait()
"""


def test_a_signal_that_another_thread_got_stops_a_process_that_waits() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], timeout=20, check=False)
    assert done.returncode == 0
