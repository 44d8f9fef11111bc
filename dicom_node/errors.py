"""Everything that `dicom_node` raises on purpose."""


class NodeError(Exception):
    """Base of the errors of this package; the message is for the person at the command line."""


class NoIndex(NodeError):
    """There is no index yet: the node has not run with this configuration."""


class PortTaken(NodeError):
    """The receiver's port cannot be listened on; restarting will not help."""


class GpuLost(NodeError):
    """A worker's GPU is not there, or computes no more for its process."""


class ModelUnavailable(NodeError):
    """A job's model cannot be opened. It has seen no image yet, so the message quotes no patient data."""
