"""How this implementation names itself, PS3.7 D.3.3.2: on associations, in received files and in what it makes."""

IMPLEMENTATION_CLASS_UID = "2.25.299139580163391857239408013271849166285"
# Without the program's version: the same instance must give the same file whichever version writes it. Equal digests
# tell a repetition from a conflict.
IMPLEMENTATION_VERSION_NAME = "DICOM_NODE"
