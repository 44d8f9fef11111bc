"""The codes of the node's own, from DICOM (DCM), SNOMED CT (SCT), LOINC (LN) and UCUM; a model brings the others."""

import re

from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code

from config import coding
from inference.finding import ModelIdentity

IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
DIAGNOSTIC_IMAGING_REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")
# CID 100, which validators hold reports to, has no CT of the chest: the site says which region.
CT_REPORTED = Code("25045-6", "LN", "CT unspecified body region")
PROCEDURE_SITE = Code("363704007", "SCT", "Procedure site")
CHEST = Code("816094009", "SCT", "Chest")
CT = Code("CT", "DCM", "Computed Tomography")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
OF_INTEREST = Code("113000", "DCM", "Of Interest")

# Headings and text of the report.
FINDINGS = Code("121070", "DCM", "Findings")
FINDING = Code("121071", "DCM", "Finding")
CONCLUSIONS = Code("121076", "DCM", "Conclusions")
CONCLUSION = Code("121077", "DCM", "Conclusion")
COMMENT = Code("121106", "DCM", "Comment")

# What was found, and where.
LUNG = Code("39607008", "SCT", "Lung")
LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")
BILATERAL = Code("51440002", "SCT", "Bilateral")

# What was measured.
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
MINIMUM = Code("255605001", "SCT", "Minimum")
MAXIMUM = Code("56851009", "SCT", "Maximum")
INTERPRETATION = Code("363713009", "SCT", "Has interpretation")
PERCENT = Code("%", "UCUM", "Percent")
MILLILITRE = Code("mL", "UCUM", "milliliter")

# How it was made.
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
MORPHOLOGICAL_OPERATIONS = Code("123104", "DCM", "Morphological Operations")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
SEGMENTATION = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
SOURCE_SERIES = Code("121232", "DCM", "Source series for segmentation")
SERIES_UID = Code("112002", "DCM", "Series Instance UID")

# Concepts that no public scheme has; declared in Coding Scheme Identification Sequence.
PRIVATE_SCHEME = "99DICOMNODE"
PRIVATE_SCHEME_NAME = "DICOM AI node private codes"

# Viewers that show a region write the name of each number beside it, and nothing else of the group. OHIF breaks no line
# and cuts what does not fit: beside a left lung there is room for some 30 characters, value and unit
# among them.
RIGHT_LUNG_SHOWN = Code("RIGHT_LUNG_ML", PRIVATE_SCHEME, "Right lung")
LEFT_LUNG_SHOWN = Code("LEFT_LUNG_ML", PRIVATE_SCHEME, "Left lung")
RIGHT_REGION_SHOWN = Code("RIGHT_REGION_ML", PRIVATE_SCHEME, "Right lung, drove AI")
LEFT_REGION_SHOWN = Code("LEFT_REGION_ML", PRIVATE_SCHEME, "Left lung, drove AI")


def concept(code: coding.Code) -> CodedConcept:
    """A model's code as DICOM writes it."""
    return CodedConcept(code.value, code.scheme, code.meaning)


def concept_or_none(code: coding.Code | None) -> CodedConcept | None:
    """As `concept`, for a code that may be missing."""
    return None if code is None else concept(code)


def label(model: ModelIdentity) -> str:
    """What a model's results are about, in the characters of a code string."""
    return re.sub("[^A-Z0-9]", "", model.words.subject.upper())[:10] or "RESULT"


def output_shown(model: ModelIdentity) -> tuple[Code, Code, Code]:
    """The names of the model's certainty, its lowest and its highest, for viewers that write nothing else of a group.

    A viewer does not say that a number is a minimum: its name does.
    """
    subject = label(model)
    return (
        Code(f"{subject}_OUTPUT", PRIVATE_SCHEME, f"{model.words.subject} research AI"),
        Code(f"{subject}_LOWEST", PRIVATE_SCHEME, "Varies from"),
        Code(f"{subject}_HIGHEST", PRIVATE_SCHEME, "Varies to"),
    )
