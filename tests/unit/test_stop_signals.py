"""A process is told to stop, whichever of its threads the kernel gives the signal to."""

import subprocess
import sys

TO_ANOTHER_THREAD = """
import signal, threading, time
from dicom_node.runtime.signals import stop_on_signals

stop = stop_on_signals()
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
threading.Timer(0.5, signal.pthread_kill, (other.ident, signal.SIGTERM)).start()
stop.wait()
"""

AT_ANY_MOMENT = """
import os, signal, threading, time
from dicom_node.runtime.signals import stop_on_signals

stop, ended = stop_on_signals(), False

def ask():
    while not ended:
        time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

asking = threading.Thread(target=ask, daemon=True)
asking.start()
for _ in range(300):
    stop.clear()
    while not stop.wait(1e-4):
        pass
ended = True
asking.join()
"""


def test_a_signal_that_another_thread_got_stops_a_process_that_waits() -> None:
    done = subprocess.run([sys.executable, "-c", TO_ANOTHER_THREAD], timeout=20, check=False)
    assert done.returncode == 0


def test_a_signal_that_comes_while_the_main_thread_looks_does_not_hang_it() -> None:
    done = subprocess.run([sys.executable, "-c", AT_ANY_MOMENT], timeout=20, check=False)
    assert done.returncode == 0
