"""Everything that `dicom_node` raises on purpose."""


class NodeError(Exception):
    """Base of the errors of this package; the message is for the person at the command line."""


class PortTaken(NodeError):
    """The receiver's port cannot be listened on; restarting will not help."""
