"""The presentation contexts that the node proposes, and how it names itself on associations, apart from the receiver's.

Contexts for storing depend on what is stored: see `store`. Those of a C-GET's instances are in `completion.retrieve`.
"""

from dataclasses import dataclass

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    UnifiedProcedureStepEvent,
    UnifiedProcedureStepPull,
    UnifiedProcedureStepWatch,
    Verification,
)

from dicom_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

# Not deflated: one megabyte may inflate to a thousand.
_UNCOMPRESSED = (str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian))


@dataclass(frozen=True)
class Service:
    """SOP Classes that are proposed together, in this order, each with these transfer syntaxes in one context."""

    name: str
    classes: tuple[str, ...]
    transfer_syntaxes: tuple[str, ...] = _UNCOMPRESSED

    def contexts(self) -> list[PresentationContext]:
        """The contexts to propose."""
        return [build_context(uid, list(self.transfer_syntaxes)) for uid in self.classes]


VERIFY = Service("Verification", (str(Verification),))
FIND = Service(
    "Query",
    (str(StudyRootQueryRetrieveInformationModelFind), str(PatientRootQueryRetrieveInformationModelFind)),
)
GET = Service(
    "Retrieval by C-GET",
    (str(StudyRootQueryRetrieveInformationModelGet), str(PatientRootQueryRetrieveInformationModelGet)),
)
MOVE = Service(
    "Retrieval by C-MOVE",
    (str(StudyRootQueryRetrieveInformationModelMove), str(PatientRootQueryRetrieveInformationModelMove)),
)
COMMIT = Service("Storage commitment", (str(StorageCommitmentPushModel),), _UNCOMPRESSED[::-1])
UPS_PULL = Service("Worklist", (str(UnifiedProcedureStepPull),))
UPS_WATCH = Service("Worklist subscription", (str(UnifiedProcedureStepWatch),))
UPS_EVENT = Service("Worklist events", (str(UnifiedProcedureStepEvent),))
"""Accepted, not proposed: the worklist opens the association."""
PROPOSED = (VERIFY, FIND, GET, MOVE, COMMIT, UPS_PULL, UPS_WATCH)


def application_entity(ae_title: str) -> AE:
    """An application entity of this implementation, and not of the library that it is built with."""
    entity = AE(ae_title=ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return entity
