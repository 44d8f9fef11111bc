"""Puts the stand-ins of tests/faults/injection.py into worker processes that something else than the zygote starts.

Python imports this at its start if the folder is on PYTHONPATH.
"""

import sys

if "dicom_node" in sys.orig_argv and "work" in sys.orig_argv:
    from tests.faults import injection

    injection.install()
