"""Notes of which series is analysed ahead: whoever finds one knows that its writer may have died of the series."""

import contextlib
import time
from pathlib import Path

from storage.private import make_folder

FOLDER = "ahead"
_KEPT_S = 86_400.0
"""By then a series is closed, and no longer analysed ahead."""


class AheadNotes:
    """Files in `ahead/` of the data directory, named by the series' numbers in the index; no content."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / FOLDER
        self._in_hand: Path | None = None

    def begin(self, series_pk: int) -> bool:
        """Note a series. Returns False if somebody has: another worker that is at it, or one that died of it."""
        self.end()
        make_folder(self._folder)
        self._forget_old()
        path = self._folder / str(series_pk)
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        self._in_hand = path
        return True

    def end(self) -> None:
        """The series in hand is no longer, and did no harm."""
        if self._in_hand is not None:
            with contextlib.suppress(OSError):  # no job may fail of a note
                self._in_hand.unlink(missing_ok=True)
            self._in_hand = None

    def _forget_old(self) -> None:
        before = time.time() - _KEPT_S
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
