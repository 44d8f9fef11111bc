"""Python imports this by itself at start, in every process of a node whose PYTHONPATH names this folder."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.faults import injection

if injection.FOLDER in os.environ:
    injection.install()
