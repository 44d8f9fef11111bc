"""Other ways from a series to a report at the PACS, as far as they can be run from their packages.

Each gets the same model and weights, and the shortest wait that it takes (`WAIT_S`).

`storescp`: DCMTK's storescp, whose --exec-on-eostudy runs `dicom-node analyse` on the study's folder and storescu.
`orthanc`: Debian's Orthanc with StableAge; a Lua script runs the same on the series that it calls stable.
`airouter`: dicom-ai-router from PyPI, in a venv of its own whose python AIROUTER names. It de-identifies the series,
sends it by HTTP to `benchmarks.turnaround_model_server`, which has the model loaded, and makes an SR of the answer.

What is not the same: none of them asks the PACS whether the series is whole. A network that pauses for WAIT_S makes
them report on a part of it. None checks digests, keeps an audit trail in a database, or answers a sender only when
slice and index row are on the disk. The first two load Python and the model anew for each series, and forget a report
that the PACS does not take. The third keeps the model loaded, as the node does, and makes no segmentation.
"""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.chest_series import Chest
from benchmarks.counting_pacs import CountingPacs
from benchmarks.turnaround_taken import LAST, Taken
from tests.conftest import require_program
from tests.programs import free_port, orthanc, running

ROOT = Path(__file__).resolve().parents[1]
AE_TITLE = "RIVAL"
WAIT_S = 1
SALT = secrets.token_hex(32)

ANALYSE = """#!/bin/sh -e
# $1: the folder of a series' images
exec >> "{folder}/log" 2>&1
export DICOM_NODE_DATA_DIR="{data_dir}" PYTHONPATH="{root}"
made=$(mktemp -d -p "{folder}")
"{python}" -m dicom_node analyse "$1" --output "$made"
"{storescu}" -R -aec {pacs_ae} 127.0.0.1 {pacs_port} "$made"/report-*.dcm
rm "$made"/report-*.dcm
"{storescu}" -R -aec {pacs_ae} 127.0.0.1 {pacs_port} "$made"/*.dcm
"""
FETCH = """#!/bin/sh -e
# $1: Orthanc's name of a series
exec >> "{folder}/log" 2>&1
got=$(mktemp -d -p "{folder}")
"{python}" -c 'import sys, urllib.request as u; u.urlretrieve(*sys.argv[1:])' \\
    "http://127.0.0.1:{http_port}/series/$1/archive" "$got/series.zip"
"{python}" -m zipfile -e "$got/series.zip" "$got"
rm "$got/series.zip"
exec "{folder}/analyse.sh" "$got"
"""
WHEN_STABLE = """
function OnStableSeries(series, tags, metadata)
  if tags["Modality"] == "CT" then os.execute("{folder}/fetch.sh " .. series .. " &") end
end
"""


class Receiver(Protocol):
    """What series are sent to."""

    port: int
    ae_title: str

    def taken(self, chest: Chest, ended: float, reported: float) -> Taken:
        """How a series went."""

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far; 0 if that is not known."""

    def said(self) -> str:
        """What became of the series so far, for a message."""


class Rival:
    """A program that says nothing of itself: time zero is the end of its sender. log: what it printed."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.ae_title = port, AE_TITLE
        self._log = log

    def taken(self, chest: Chest, ended: float, reported: float) -> Taken:
        """How a series went. ended, reported: Unix seconds."""
        return Taken({LAST: reported - ended})

    def cpu_s(self) -> float:
        """Not known: what its scripts start is not always among its children."""
        return 0.0

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text()[-2000:] if self._log.exists() else "nothing"


def _write_script(path: Path, text: str, **values: object) -> None:
    path.write_text(text.format(python=sys.executable, root=ROOT, folder=path.parent, **values))
    path.chmod(0o755)


def _write_analysis(folder: Path, pacs: CountingPacs, models: Path) -> None:
    """The script that analyses a folder and sends what it made, the report first."""
    (folder / "var").mkdir(parents=True)
    (folder / "var" / "models").symlink_to(models)
    peer = {"pacs_ae": pacs.ae_title, "pacs_port": pacs.port, "storescu": require_program("storescu")}
    _write_script(folder / "analyse.sh", ANALYSE, data_dir=folder / "var", **peer)


@contextlib.contextmanager
def storescp(folder: Path, pacs: CountingPacs, models: Path) -> Iterator[Rival]:
    """DCMTK's storescp with a script."""
    _write_analysis(folder, pacs, models)
    port, received = free_port(), folder / "in"
    received.mkdir()
    rules = ["-su", "study", "-xcs", f"{folder / 'analyse.sh'} #p", "-tos", str(WAIT_S)]
    command = [require_program("storescp"), "-od", str(received), "-aet", AE_TITLE, *rules, str(port)]
    with running(command, port, folder):
        yield Rival(port, folder / "log")


@contextlib.contextmanager
def scripted_orthanc(folder: Path, pacs: CountingPacs, models: Path) -> Iterator[Rival]:
    """Debian's Orthanc with a script."""
    _write_analysis(folder, pacs, models)
    http_port = free_port()
    _write_script(folder / "fetch.sh", FETCH, http_port=http_port)
    (folder / "stable.lua").write_text(WHEN_STABLE.format(folder=folder))
    rules = {"StableAge": WAIT_S, "LuaScripts": [str(folder / "stable.lua")], "HttpPort": http_port}
    with orthanc(folder / "orthanc", **rules) as server:
        yield Rival(server.port, folder / "log")


@contextlib.contextmanager
def airouter(folder: Path, pacs: CountingPacs, models: Path) -> Iterator[Rival]:
    """dicom-ai-router, with the model behind HTTP."""
    folder.mkdir(parents=True)
    port, model_port, log = free_port(), free_port(), folder / "log"
    (folder / "router.json").write_text(json.dumps(_router(folder, port, model_port, pacs)))  # YAML has JSON in it
    server = [sys.executable, "-m", "benchmarks.turnaround_model_server", str(model_port), str(models)]
    router = [
        "env",
        "-u",
        "PYTHONPATH",
        f"AIROUTER_DEID_SALT={SALT}",
        os.environ["AIROUTER"],
        "-m",
        "airouter",
        "serve",
    ]
    logged = ["sh", "-c", f'exec "$@" >> "{log}" 2>&1', "sh"]
    router += ["--config", str(folder / "router.json")]
    with running([*logged, *server], model_port, ROOT), running([*logged, *router], port, folder):
        yield Rival(port, log)


def _router(folder: Path, port: int, model_port: int, pacs: CountingPacs) -> dict[str, Any]:
    return {
        "router": {
            **{"ae_title": AE_TITLE, "port": port, "bind_address": "127.0.0.1", "workdir": str(folder / "data")},
            **{"study_quiet_seconds": WAIT_S, "workers": 2},
        },
        "pacs": {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port},
        "ai_endpoints": {"chest": {"url": f"http://127.0.0.1:{model_port}/", "timeout_s": 900, "retries": 1}},
        "rules": [{"name": "chest", "match": {"Modality": "^CT$"}, "model": "chest", "series": "largest"}],
        "deid": {},
    }


Start = Callable[[Path, CountingPacs, Path], AbstractContextManager[Receiver]]
"""Starts a receiver in a folder. It sends to the PACS, and finds the model in the second folder."""
RIVALS: dict[str, Start] = {"storescp": storescp, "orthanc": scripted_orthanc, "airouter": airouter}
