"""Coded terms of audit messages: PS3.16 CID 400 to 405, and RFC 3881's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A coded value: csd-code, originalText, codeSystemName."""

    value: str
    meaning: str
    scheme: str = "DCM"


# CID 400, Audit Event ID.
APPLICATION_ACTIVITY = Code("110100", "Application Activity")
AUDIT_LOG_USED = Code("110101", "Audit Log Used")
BEGIN_TRANSFERRING = Code("110102", "Begin Transferring DICOM Instances")
INSTANCES_ACCESSED = Code("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
DATA_EXPORT = Code("110106", "Export")
DATA_IMPORT = Code("110107", "Import")
SECURITY_ALERT = Code("110113", "Security Alert")
USER_AUTHENTICATION = Code("110114", "User Authentication")

# CID 401 and 403, types of events.
APPLICATION_START = Code("110120", "Application Start")
APPLICATION_STOP = Code("110121", "Application Stop")
LOGIN = Code("110122", "Login")
LOGOUT = Code("110123", "Logout")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
NETWORK_CONFIGURATION = Code("110128", "Network Configuration")
SOFTWARE_CONFIGURATION = Code("110131", "Software Configuration")
OBJECT_CHANGED = Code("110135", "Object Security Attributes Changed")
ROLES_CHANGED = Code("110136", "Security Roles Changed")
USER_CHANGED = Code("110137", "User Security Attributes Changed")

# CID 402, roles of participants.
APPLICATION = Code("110150", "Application")
APPLICATION_LAUNCHER = Code("110151", "Application Launcher")
DESTINATION = Code("110152", "Destination Role ID")
SOURCE = Code("110153", "Source Role ID")
DESTINATION_MEDIA = Code("110154", "Destination Media")
SOURCE_MEDIA = Code("110155", "Source Media")

# CID 404 and 405, and RFC 3881's kinds of identifiers.
STUDY_UID = Code("110180", "Study Instance UID")
NODE_ID = Code("110182", "Node ID")
URI = Code("110037", "URI")
PATIENT_NUMBER = Code("2", "Patient Number", "RFC-3881")
URI_ID = Code("12", "URI", "RFC-3881")
