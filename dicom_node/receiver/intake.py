"""What every reception works with: where instances go, and what limits them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from dicom_node.receiver.committer import Committer
from dicom_node.receiver.own_images import OwnImages
from dicom_node.receiver.refusals import Refusals
from dicom_node.receiver.resources import Resources
from storage.database import Database
from storage.files import FileStore
from storage.pseudonyms import Pseudonyms


@dataclass(frozen=True)
class Intake:
    """Where instances go, and what limits them.

    min_bytes_per_s, patience_s: a data set that comes slower than this is cut off after this many seconds.
    received_elsewhere: other processes receive as well; see `Reception._commit_first`.
    """

    database: Database
    files: FileStore
    committer: Committer
    resources: Resources
    refusals: Refusals
    max_instance_bytes: int
    min_bytes_per_s: float
    patience_s: float
    pseudonyms: Pseudonyms
    received_elsewhere: bool = False
    own: OwnImages | None = None
    clock: Callable[[], float] = time.time
