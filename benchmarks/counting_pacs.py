"""Debian's Orthanc as the PACS: it holds series before the node gets them, counts them, and receives the reports."""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import require_program
from tests.programs import Orthanc, orthanc

SR_CLASSES = "1.2.840.10008.5.1.4.1.1.88."
QUIET_S = 2.0


class CountingPacs:
    """A running Orthanc that says when a report has come."""

    ae_title = "ORTHANC"

    def __init__(self, server: Orthanc) -> None:
        self._server = server
        self.port = server.port
        self._seen = 0

    def hold(self, files: Sequence[Path]) -> None:
        """Have it store these, by C-STORE."""
        command = [require_program("storescu"), "-xe", "-aec", self.ae_title, "127.0.0.1", str(self.port)]
        subprocess.run([*command, *map(str, files)], check=True, stderr=subprocess.DEVNULL)

    def look_from_now(self) -> None:
        """What has come so far is no longer told."""
        self._seen = self._server.call("/changes?last")["Last"]

    def reports(self) -> dict[str, float]:
        """The reports since the last look: when each was found, Unix seconds, by Study Instance UID."""
        changes = self._server.call(f"/changes?since={self._seen}&limit=1000")
        now, self._seen = time.time(), changes["Last"]
        came = [change["ID"] for change in changes["Changes"] if change["ChangeType"] == "NewInstance"]
        return {self._study_uid(one): now for one in came if self._is_report(one)}

    def _is_report(self, instance: str) -> bool:
        metadata = self._server.call(f"/instances/{instance}/metadata?expand")
        return str(metadata.get("SopClassUid", "")).startswith(SR_CLASSES)

    def _study_uid(self, instance: str) -> str:
        return str(self._server.call(f"/instances/{instance}/study")["MainDicomTags"]["StudyInstanceUID"])

    def wait_until_quiet(self) -> None:
        """Wait until nothing has come for QUIET_S: whoever sends has sent everything."""
        last = None
        while last != (last := self._server.call("/changes?last")["Last"]):
            time.sleep(QUIET_S)

    def forget(self) -> None:
        """Delete everything, so that the disk does not fill."""
        for study in self._server.call("/studies"):
            self._server.call(f"/studies/{study}", method="DELETE")


@contextlib.contextmanager
def counting_pacs(folder: Path) -> Iterator[CountingPacs]:
    """Orthanc with its storage in `folder`."""
    with orthanc(folder) as server:
        yield CountingPacs(server)
