"""The file store that the settings name."""

from config.settings import Settings
from storage.files import FileStore
from storage.folder import FolderStore


def files_of(settings: Settings, *, make: bool = True) -> FileStore:
    """The stored files of a node.

    make: create the folder if it is not there; a command that only looks must not.
    """
    return FolderStore(settings.files_dir, make=make)
