"""Everything that `storage` raises on purpose. No message holds a patient identifier.

StorageError
├── StorageFull        no space for a file or for the index; transient, A700 on the network
├── DatabaseBusy       another process held the index for too long; try again
├── DatabaseReadOnly   the index cannot be written
├── DatabaseCorrupt    the index file is damaged
├── DatabaseUnavailable  the index could not be reached, or its disk failed
│   └── StoreReplaced  the index or the files folder is no longer the one that was opened
├── DatabaseOutdated   the index has the schema of an earlier version of this program
├── DatabaseTooNew     the index was made by a later version of this program
├── NotLeader          another host decides now; what this one was about to do did not happen
├── WrongClock         the clock of this machine is too far from that of the database server
├── StoreMismatch      the index and the stored files do not belong together
├── MoveFailed         an index cannot be moved to another database
├── StoreUnavailable   the object store cannot be reached, or does not answer; transient, A700 on the network
├── CorruptFile        a stored file is missing or is not what was stored
├── AlteredReference   what a watched model is compared with is not what was frozen
├── NotFound           no such row
├── Ambiguous          several rows match what was asked for
├── UnusableVerdict    a reader's verdict cannot be kept as it was given
├── NotDueYet          an instance has come since it was decided to close the series
├── IllegalMove        the state machine has no such arrow from the row's state
└── StaleLease         somebody else holds the row now; drop the work
"""


class StorageError(Exception):
    """Base of the errors of this package."""


class StorageFull(StorageError):
    """No space for a file or for the index; nothing was left behind. Trying later may help."""


class DatabaseBusy(StorageError):
    """Another process held the index for longer than the busy timeout; the transaction did not happen."""


class DatabaseReadOnly(StorageError):
    """The index cannot be written: its file, folder or file system is read-only."""


class DatabaseCorrupt(StorageError):
    """The index file is damaged or is not a database."""


class DatabaseUnavailable(StorageError):
    """The index could not be reached, or its disk failed. Whether the transaction happened is not known."""


class StoreUnavailable(StorageError):
    """The object store cannot be reached, does not answer in time, or refuses. Trying later may help."""


class StoreReplaced(DatabaseUnavailable):
    """Index or files folder was removed, renamed or replaced after it was opened: nothing may be acknowledged."""


class StoreMismatch(StorageError):
    """The index and the stored files do not belong together. The message says what was found and what to do."""


class MoveFailed(StorageError):
    """An index was not moved to another database: it is used as before. The message says why."""


class DatabaseOutdated(StorageError):
    """The index has the schema of another version than this program's: the program was changed, and no node started."""


class DatabaseTooNew(StorageError):
    """The index has a schema that this version of the program does not know."""


class NotLeader(StorageError):
    """Another host has taken over what only one may do; the transaction did not happen."""


class WrongClock(StorageError):
    """This machine's clock is too far from that of the database server; the message says how far."""


class CorruptFile(StorageError):
    """A stored file is missing, or its SHA-256 differs from the one recorded."""


class AlteredReference(StorageError):
    """The reference of a watched model is not what was frozen: its SHA-256 differs from the one recorded."""


class NotFound(StorageError):
    """The row asked for does not exist."""


class Ambiguous(StorageError):
    """Several rows match what a person asked for; the message names some of them."""


class UnusableVerdict(StorageError):
    """A reader's verdict contradicts itself, is too long, or is not one; the message says what to change."""


class NotDueYet(StorageError):
    """The series may not be closed on this decision: an instance has come since. Decide again."""


class IllegalMove(StorageError):
    """The row's state has no arrow to the state asked for."""


class StaleLease(StorageError):
    """The fencing number is not the current one: the lease went to somebody else, or the row moved on."""
