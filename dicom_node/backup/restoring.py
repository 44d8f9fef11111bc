"""A node from a backup, in another place: files first, the index last, so that nobody starts on a part of it.

The index gets its own audit row of the point that it was restored from. What others held then is given back. Results
that waited are held until a person resumes the destinations: by then the senders have sent again what came after the
point, and an outdated result is not sent ahead of a later one.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, inspect, select, update
from sqlalchemy.engine import make_url

from dicom_node.backup import manifest as form
from dicom_node.backup import postgresql
from dicom_node.backup.manifest import Manifest, read_manifest, sha256_in, sha256_of, sums_of
from dicom_node.backup.placing import Placing, copy
from dicom_node.backup.verifying import stored_of
from dicom_node.errors import NodeError
from storage import audit, deliveries, job_takeover, pauses, tallies
from storage.copies import judge, to_compare
from storage.database import Database
from storage.errors import CorruptFile
from storage.files import FileStore
from storage.identity import raise_epoch
from storage.lost import mark_lost
from storage.models import conflicts, hosts, instances, web_sessions
from storage.pauses import Pausable
from storage.private import fsync_folder, make_folder
from storage.retention import remove_images

Report = Callable[[str, int, int], None]
AT_ONCE = 500
RESTORED = (form.FILES, form.MODELS, form.ARCHIVES)
BESIDE_INDEX = ("-wal", "-shm", "-journal")
WHY = "deleted while the backup was made"


@dataclass(frozen=True)
class Restored:
    """What a restore leaves: the point, and the destinations that are paused.

    lost: how many files that the index names are not there. damaged: the stored files that were left out, because they
    are not what they were when the backup was made.
    """

    manifest: Manifest
    held: tuple[str, ...]
    lost: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Restorer:
    """Restores to a data folder and an index. files: of the new node, in the folder or in its bucket.

    url: of the new index. hold: pause the destinations. user: who wants it, for the audit trail.
    """

    data_dir: Path
    url: str
    files: Callable[[], FileStore]
    user: str
    hold: bool = True
    report: Report = lambda what, done, of: None

    def restore(self, folder: Path) -> Restored:
        """Restore a backup. Stored files that are damaged are left out: the index says that they are lost.

        Raises NodeError with what to do, and then no node can start on what is there.
        """
        manifest, seal = read_manifest(folder)
        if sha256_of(folder / form.SUMS) != manifest.sums_sha256:
            raise NodeError(f"{folder / form.SUMS} was altered: this backup cannot be trusted")
        self._refuse(manifest)
        try:
            make_folder(self.data_dir)
            damaged = self._place(folder, manifest)
            self.report("index", 0, 0)
            return self._index(folder, manifest, seal, damaged)
        except CorruptFile as error:
            raise NodeError(
                f"the backup is damaged: {error}. Take one that `verify` finds whole; {self._clear}"
            ) from error
        except OSError as error:
            raise NodeError(f"nothing can be started from this restore: {error}. {self._clear}") from error

    @property
    def _clear(self) -> str:
        return f"Empty {self.data_dir} before the next restore"

    def _refuse(self, manifest: Manifest) -> None:
        """Nothing that is there may be overwritten."""
        if self.data_dir.exists() and (not self.data_dir.is_dir() or any(self.data_dir.iterdir())):
            raise NodeError(f"{self.data_dir} is not empty: restore into a new folder")
        url = make_url(self.url)
        if url.get_backend_name() != manifest.engine:
            raise NodeError(
                f"the backup holds an index of {manifest.engine}, and the settings name one of "
                f"{url.get_backend_name()}: restore it to {manifest.engine}, then `dicom-node index move`"
            )
        if manifest.engine == form.SQLITE:
            _refuse_index(Path(str(url.database)))
        if manifest.engine == form.POSTGRESQL:
            database = Database(self.url)
            with database.read() as tx:
                if inspect(tx).get_table_names():
                    raise NodeError(f"the database {database.where} is not empty: create a new one for the restore")
        if manifest.bucket:
            self._refuse_another_bucket(manifest)

    def _refuse_another_bucket(self, manifest: Manifest) -> None:
        files = self.files()
        found = files.mark().read()
        if not files.lists_slowly or found is None or found.store != manifest.store:
            raise NodeError(
                f"the files of this backup are in {manifest.bucket}: name that bucket, or a copy of it, in [storage] "
                "bucket of the settings (--config)"
            )

    def _place(self, folder: Path, manifest: Manifest) -> tuple[str, ...]:
        """All but the index. Returns the stored files that were left out because they are damaged."""
        placing, damaged = Placing(self.data_dir), []
        for number, (sha256, path) in enumerate(sums_of(folder / form.SUMS)):
            if number % 50 == 0:
                self.report("files", number, manifest.files)
            kind = path.partition("/")[0]
            if kind not in RESTORED and path != manifest.index:
                continue
            is_whole = _is_whole(folder, path, sha256)
            if not is_whole and kind != form.FILES:
                raise CorruptFile(f"{path} is not what the list says")
            if not is_whole:  # earlier backups may hold the same file: it is a link
                damaged.append(path.removeprefix(f"{form.FILES}/"))
            elif kind == form.MODELS:
                placing.place_copy(folder / path, path)
            elif kind in RESTORED:
                placing.place(folder / path, path, sha256=sha256)
        placing.sync()
        return tuple(damaged)

    def _index(self, folder: Path, manifest: Manifest, seal: str, damaged: tuple[str, ...]) -> Restored:
        """The index, its audit row and the mark of its files. It gets its name, or the files their mark, last."""
        if manifest.engine == form.POSTGRESQL:
            database = Database(self.url)
            postgresql.loaded(database, folder / form.DUMP, manifest.pg_schema)
            restored = self._adjusted(database, folder, manifest, seal, damaged)
            raise_epoch(database, self.files())
            return restored
        index = Path(str(make_url(self.url).database))
        unfinished = index.with_name(f"{index.name}.restoring")
        make_folder(index.parent)
        copy(folder / form.INDEX, unfinished)
        database = Database(f"sqlite:///{unfinished}")
        restored = self._adjusted(database, folder, manifest, seal, damaged)
        raise_epoch(database, self.files())
        database.close()
        for path in unfinished.parent.glob(f"{unfinished.name}.schema-*"):
            path.unlink()  # of the upgrade: the backup itself is the copy
        os.rename(unfinished, index)
        fsync_folder(index.parent)
        return restored

    def _adjusted(
        self, database: Database, folder: Path, manifest: Manifest, seal: str, damaged: tuple[str, ...]
    ) -> Restored:
        database.migrate()
        files, now = self.files(), time.time()
        absent = [*self._absent(files, folder, manifest), *damaged]
        removed: list[str] = []
        for start in range(0, len(manifest.deleted), AT_ONCE):
            with database.transaction() as tx:
                removed += _note_deleted(tx, manifest.deleted[start : start + AT_ONCE], now)
        files.remove_all(removed)
        for start in range(0, len(absent), AT_ONCE):
            with database.transaction() as tx:
                mark_lost(tx, instances.c.path.in_(absent[start : start + AT_ONCE]), "missing", now)
        with database.transaction() as tx:
            held = self._hold(tx, manifest, now) if self.hold else ()
            _give_back(tx, now)
            detail = {
                "user": self.user, "point": manifest.point, "made_at": manifest.made_at, "seal": seal,
                "backup": folder.resolve().name, "held": list(held), "lost": len(absent), "damaged": len(damaged),
            }  # fmt: skip
            audit.append(tx, now, "index.restored", outcome="RESTORED", detail=detail)
        return Restored(manifest, held, len(absent), damaged)

    def _absent(self, files: FileStore, folder: Path, manifest: Manifest) -> list[str]:
        """What rows name and is not there: known to be lost; of a bucket, also what it no longer has."""
        if not manifest.bucket:
            return list(manifest.lost)
        there = {path for _, paths in files.folders(float("inf")) for path in paths}
        return [one.path for one in stored_of(folder, manifest) if one.path not in there]

    def _hold(self, tx: Connection, manifest: Manifest, now: float) -> tuple[str, ...]:
        names = sorted({*manifest.destinations, *tallies.read(tx).parts("deliveries")})
        for name in names:
            if not pauses.is_paused(tx, Pausable.DESTINATION, name):
                pauses.pause(tx, Pausable.DESTINATION, name, self.user, now)
        return tuple(names)


def _refuse_index(index: Path) -> None:
    """Nor may SQLite play the changes of an index that is gone into the restored one."""
    for path in (index, *(index.with_name(f"{index.name}{end}") for end in BESIDE_INDEX)):
        if path.exists():
            raise NodeError(f"there is an index, or what one left, at {path} already: move {index}* away")


def _is_whole(folder: Path, path: str, sha256: str) -> bool:
    """Whether a file of a backup is what it was; not if it is gone or its disk does not give it back."""
    try:
        return sha256_in(folder, path) == sha256
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EIO):
            raise
        return False


def _give_back(tx: Connection, now: float) -> None:
    """What the node held at the point is nobody's: it ran elsewhere, or it is gone. Nobody is logged in here."""
    job_takeover.release_all(tx, now)
    deliveries.release_all(tx, now)
    tx.execute(update(hosts).where(hosts.c.stopped_at.is_(None)).values(stopped_at=now))
    tx.execute(delete(web_sessions))


def _note_deleted(tx: Connection, paths: tuple[str, ...], now: float) -> Iterator[str]:
    """Rows whose files went while the backup was made: they say so, as the rows of the node itself did then.

    Returns files of the same series that are still in the backup.
    """
    of_series = select(instances.c.series_pk).where(instances.c.path.in_(paths)).distinct()
    for series_pk in tx.scalars(of_series).all():
        yield from remove_images(tx, series_pk, now, {"why": WHY})
    aside = set(tx.scalars(select(conflicts.c.path).where(conflicts.c.path.in_(paths))))
    for one in to_compare(tx, 1_000_000) if aside else ():
        if one.path in aside:
            judge(tx, one, None, now)
