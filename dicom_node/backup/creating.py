"""Making a backup while the node runs.

The index comes first, as one point. Then each file that this index names is linked or copied. What arrives later is not
in the backup; what retention deletes meanwhile is named in the manifest. All of it is made under another name and gets
its own as the last step, so that a part of a backup is never taken for one.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from config.settings import Settings
from dicom_node.backup import manifest as form
from dicom_node.backup.configuration import files_named, secrets_in, secrets_of, settings_text, without_secrets
from dicom_node.backup.manifest import Manifest, Sums, private_file, read_manifest, sha256_of, write_manifest
from dicom_node.backup.placing import Placing
from dicom_node.backup.points import Point, taken
from dicom_node.backup.target import PREFIX, UNFINISHED, alone, backups_of, remove_older
from dicom_node.backup.wanted import deleted_since, wanted
from dicom_node.errors import NodeError
from dicom_node.gateways.audit_messages.forwarder import ARCHIVES
from storage import audit
from storage.database import Database
from storage.errors import CorruptFile, StorageError
from storage.files import FileStore, StoredFile
from storage.private import fsync_folder, make_folder

ARCHIVE = "audit-*.jsonl.gz"
REPORT_EVERY = 200
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Made:
    """A backup that was made. counts: see `Placing`. removed: older ones that made room."""

    folder: Path
    manifest: Manifest
    seal: str
    counts: dict[str, int]
    removed: tuple[Path, ...] = ()


@dataclass
class _Files:
    """What became of the stored files."""

    placed: int = 0
    size: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Creator:
    """Makes backups of one node. config_file: the site's settings. user: who wants it, for the audit trail.

    report: gets what is done, how much of it, and of how much.
    """

    settings: Settings
    database: Database
    files: FileStore
    config_file: Path | None
    user: str
    report: Report = lambda what, done, of: None

    def create(self, target: Path, previous: Path | None = None, keep: int | None = None) -> Made:
        """Make one below `target`. previous: an earlier one whose files are linked; by default the last one there.

        keep: how many of this node's backups stay below `target`, this one among them; without it, all.
        Raises NodeError with what to do; StorageError.
        """
        try:
            make_folder(target)
            with alone(target):
                made = self._create(target, previous)
                return replace(made, removed=_removed(target, made, keep)) if keep else made
        except (OSError, sqlite3.Error) as error:
            raise NodeError(f"the backup was not made: {error}") from error

    def _create(self, target: Path, previous: Path | None) -> Made:
        now = time.time()
        name = f"{PREFIX}{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
        if (target / name).exists():
            raise NodeError(f"{target / name} is there already: one backup a second is enough")
        folder = target / f"{name}{UNFINISHED}"
        try:
            made, placing, seal = self._fill(folder, target, previous, now)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)  # it may have filled the disk
            raise
        os.rename(folder, target / name)
        fsync_folder(target)
        self._audit(target / name, made, seal, placing)
        return Made(target / name, made, seal, dict(placing.counts))

    def _fill(self, folder: Path, target: Path, previous: Path | None, now: float) -> tuple[Manifest, Placing, str]:
        """Everything that belongs to a backup, durably. Returns its manifest, what was placed how, and its seal."""
        make_folder(folder / "index")
        self.report("index", 0, 0)
        with taken(self.database, folder) as point:
            earlier = self._earlier(target, previous, point)
            count = _list_wanted(point, folder / "wanted")
            point = replace(point, tx=None)  # type: ignore[arg-type]  # a server must not wait for the files
        placing = Placing(folder, earlier)
        sums = Sums(folder / form.SUMS)
        found = self._place_files(placing, sums, folder, count)
        self._place_others(placing, sums, point)
        made = self._describe(point, found, sums, now, earlier)
        placing.sync()
        fsync_folder(folder / "index")
        seal = write_manifest(folder, made)
        fsync_folder(folder)
        return made, placing, seal

    def _earlier(self, target: Path, previous: Path | None, point: Point) -> Path | None:
        """The backup whose files are linked, if there is one of the same store."""
        if previous is not None and read_manifest(previous)[0].store != point.identity.store:
            raise NodeError(f"{previous} is a backup of another node")
        if previous is not None or self.settings.storage.bucket:
            return previous
        return next(iter(backups_of(target, point.identity.store)), None)

    def _place_files(self, placing: Placing, sums: Sums, folder: Path, count: int) -> _Files:
        """The stored files, in the order of the list. A bucket keeps them: only their digests are listed."""
        found = _Files()
        listed = Sums(folder / form.OBJECTS) if self.settings.storage.bucket else None
        for number, one in enumerate(_wanted(folder / "wanted")):
            if number % REPORT_EVERY == 0:
                self.report("files", number, count)
            if listed is not None:
                listed.add(one.sha256, f"{form.FILES}/{one.path}")
                found.placed, found.size = found.placed + 1, found.size + one.size
            else:
                self._place_file(placing, sums, one, found)
        self.report("files", count, count)
        (folder / "wanted").unlink()
        if listed is not None:
            sums.add(listed.close(), form.OBJECTS)
        return found

    def _place_file(self, placing: Placing, sums: Sums, one: StoredFile, found: _Files) -> None:
        path = f"{form.FILES}/{one.path}"
        try:
            sums.add(placing.place(self.files.absolute(one.path), path, one.size, one.sha256), path)
        except FileNotFoundError:
            found.missing.append(one.path)
        except CorruptFile:
            found.damaged.append(one.path)
        else:
            found.placed, found.size = found.placed + 1, found.size + one.size

    def _place_others(self, placing: Placing, sums: Sums, point: Point) -> None:
        """Models, archives of the audit trail, files that nobody could read, configuration, and the index's digest."""
        archives = self.settings.audit.syslog.archives or self.settings.data_dir / ARCHIVES
        for name, source, pattern in ((form.MODELS, self.settings.models_dir, "*"), (form.ARCHIVES, archives, ARCHIVE)):
            for path in _files_below(source, pattern):
                sums.add(placing.place_copy(source / path, f"{name}/{path}"), f"{name}/{path}")
        if not self.settings.storage.bucket:
            for path in self.files.unreadable():
                stored = f"{form.FILES}/{path}"
                sums.add(placing.place(self.files.absolute(path), stored), stored)
        for name, text in self._configuration().items():
            _write(placing.root / form.CONFIGURATION / name, text)
            sums.add(sha256_of(placing.root / form.CONFIGURATION / name), f"{form.CONFIGURATION}/{name}")
        index = form.INDEX if point.engine == form.SQLITE else form.DUMP
        sums.add(sha256_of(placing.root / index), index)

    def _configuration(self) -> dict[str, str]:
        texts = {"settings.json": settings_text(self.settings)}
        if self.config_file is not None:
            text = without_secrets(self._config_text(), secrets_of(self.settings))
            if text is not None:
                texts["node.toml"] = text
        return texts

    def _config_text(self) -> str:
        return self.config_file.read_text(encoding="utf-8-sig") if self.config_file else ""

    def _describe(self, point: Point, found: _Files, sums: Sums, now: float, earlier: Path | None) -> Manifest:
        deleted = deleted_since(self.database, found.missing)
        lost = [path for path in found.missing if path not in deleted] + found.damaged
        return Manifest(
            program=version("dicom-node"),
            made_at=now,
            store=point.identity.store,
            epoch=point.identity.epoch,
            head=point.head,
            schema=point.schema,
            engine=point.engine,
            pg_schema=point.pg_schema,
            bucket=self.settings.storage.bucket,
            sums_sha256=sums.close(),
            files=found.placed,
            size=found.size,
            previous=earlier.name if earlier else "",
            deleted=tuple(sorted(deleted)),
            lost=tuple(lost),
            secrets=tuple(sorted({*secrets_of(self.settings), *secrets_in(self._config_text())})),
            outside=files_named(self.settings),
            destinations=tuple(one.name for one in self.settings.destinations),
        )

    def _audit(self, folder: Path, made: Manifest, seal: str, placing: Placing) -> None:
        detail = {
            "user": self.user,
            "to": str(folder),
            "point": made.point,
            "seal": seal,
            "files": made.files,
            "bytes": made.size,
            "lost": len(made.lost),
            **placing.counts,
        }
        try:
            with self.database.transaction() as tx:
                audit.append(tx, self.database.now(), "backup.created", outcome="CREATED", detail=detail)
        except StorageError as error:
            raise NodeError(
                f"the backup {folder} is whole. But the audit trail has no row of it, and no older one was removed: "
                f"{error}"
            ) from error


def _removed(target: Path, made: Made, keep: int) -> tuple[Path, ...]:
    try:
        return tuple(remove_older(target, made.folder, made.manifest.store, keep))
    except OSError as error:
        raise NodeError(f"the backup {made.folder} is whole. But an older one was not removed: {error}") from error


def _list_wanted(point: Point, path: Path) -> int:
    """Write down which files the point names: a database server does not wait while they are copied."""
    count = 0
    with private_file(path) as file:
        for one in wanted(point.tx):
            count += 1
            file.write(f"{one.sha256} {one.size} {one.path}\n".encode())
    return count


def _wanted(path: Path) -> Iterator[StoredFile]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            sha256, size, name = line.rstrip("\n").split(" ", 2)
            yield StoredFile(name, sha256, int(size))


def _files_below(folder: Path, pattern: str) -> list[str]:
    """The files below a folder that match, without those that are being made."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob(pattern)) if path.is_file())
    return [path.as_posix() for path in paths if not path.parts[0].startswith(".")]


def _write(path: Path, text: str) -> None:
    make_folder(path.parent)
    with private_file(path) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(path.parent)
