"""The index: can it be reached, is its schema this program's, do its files belong to it?"""

from collections.abc import Iterator

from config.settings import Settings
from dicom_node.errors import NodeError, NoIndex
from dicom_node.runtime.index import open_index
from dicom_node.runtime.installation.found import Found, good, look, wrong
from storage.database import Database
from storage.errors import DatabaseOutdated, StorageError
from storage.server_time import BOUND_S

OFF_S = 2.0


def index(settings: Settings) -> Iterator[Found]:
    """Opens it as a command does that only reads. It makes no SQLite index."""
    part = "index"
    try:
        database = open_index(settings, create=False, upgrade=False)
    except NoIndex as error:
        yield good(part, str(error))
        return
    except DatabaseOutdated as error:
        yield look(part, str(error), "systemctl restart dicom-node")
        return
    except (NodeError, StorageError, PermissionError) as error:
        yield wrong(part, str(error), "the message says what to do")
        return
    held, needed = database.schema()
    schema = f"schema {held}" if held == needed else f"schema {held}, with which this program ({needed}) works"
    yield good(part, f"{database.where}: {schema}, and its files belong to it")
    yield from _clock_of(database)
    database.close()


def _clock_of(database: Database) -> Iterator[Found]:
    if not database.is_server:
        return
    ahead_s = database.host_is_ahead_s()
    says = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database server's"
    if abs(ahead_s) > BOUND_S:
        yield wrong("clock of the index", says, "set both clocks by NTP: the node does not start")
    elif abs(ahead_s) > OFF_S:
        yield look("clock of the index", says, "set both clocks by NTP")
    else:
        yield good("clock of the index", says)
