"""Everything that an object of the node takes from a source's header: nothing that is not listed here is copied.

The list bounds what a stranger's header can put into a report, in depth, count and size: attributes by name, items of
sequences as deep as `ITEMS` says, at most `MOST_VALUES` values and `MOST_ITEMS` items, each value as its
representation allows (`values`).
"""

MOST_VALUES = 16
MOST_ITEMS = 16
MOST_BYTES = 1 << 16
"""Longest encoded value or sequence that is looked at."""

REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
"""Type 2 attributes of the Patient and General Study modules: present, and empty if the source has no valid value."""

_PATIENT = (
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "PatientBirthTime",
    "OtherPatientNames",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "QualityControlSubject",
)
_STUDY = (
    "StudyDescription",
    "ConsultingPhysicianName",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "RequestingService",
)
_PATIENT_STUDY = (
    "AdmittingDiagnosesDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "MedicalAlerts",
    "Allergies",
    "Occupation",
    "SmokingStatus",
    "AdditionalPatientHistory",
    "AdmissionID",
    "ServiceEpisodeID",
    "ServiceEpisodeDescription",
    "PatientState",
)
CLINICAL_TRIAL = (
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "AcquisitionDateTime",
)
_SERIES_AND_IMAGE = (
    "SeriesNumber",
    "SeriesDescription",
    "InstanceNumber",
    "ConvolutionKernel",
    "SliceThickness",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "TimezoneOffsetFromUTC",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
SIMPLE = (*REQUIRED, *_PATIENT, *_STUDY, *_PATIENT_STUDY, *CLINICAL_TRIAL, *EQUIPMENT, *_SERIES_AND_IMAGE)

_CODE = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
_CODED = (_CODE, ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
_REFERENCE = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
_ISSUER = ("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType")
_OTHER_ID = ("PatientID", "IssuerOfPatientID", "TypeOfPatientID")
ITEMS = {
    "ProcedureCodeSequence": _CODED,
    "ReasonForPerformedProcedureCodeSequence": _CODED,
    "AdmittingDiagnosesCodeSequence": _CODED,
    "DeidentificationMethodCodeSequence": _CODED,
    "ReferencedStudySequence": (_REFERENCE, _REFERENCE),
    "ReferencedPatientSequence": (_REFERENCE, _REFERENCE),
    "OtherPatientIDsSequence": (_OTHER_ID, ("PatientID", "TypeOfPatientID")),
    "IssuerOfAccessionNumberSequence": (_ISSUER, ()),
}
"""By sequence: what is copied of each item, and what an item needs to be copied at all. No item holds a sequence."""

ENUMERATED = {
    "PatientSex": ("M", "F", "O"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "QualityControlSubject": ("YES", "NO"),
    "SmokingStatus": ("YES", "NO", "UNKNOWN"),
    "TypeOfPatientID": ("TEXT", "RFID", "BARCODE"),
}
"""The only values that an attribute may have."""

IDENTIFIERS = frozenset(
    {
        "PatientID",
        "IssuerOfPatientID",
        "AccessionNumber",
        "StudyID",
        "AdmissionID",
        "ServiceEpisodeID",
        "DeviceSerialNumber",
        "TimezoneOffsetFromUTC",
        "ClinicalTrialProtocolID",
        "ClinicalTrialSiteID",
        "ClinicalTrialSubjectID",
        "ClinicalTrialSubjectReadingID",
        "ClinicalTrialTimePointID",
        "CodeValue",
        "CodingSchemeDesignator",
        "CodingSchemeVersion",
        "LocalNamespaceEntityID",
        "UniversalEntityID",
    }
)
"""Never shortened or patched: a part of an identifier may be another person's."""
