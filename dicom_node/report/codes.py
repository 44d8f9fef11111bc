"""Every code that the node writes, from DICOM (DCM), SNOMED CT (SCT), LOINC (LN) and UCUM."""

from pydicom.sr.coding import Code

IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
DIAGNOSTIC_IMAGING_REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")
# CID 100, which validators hold reports to, has no CT of the chest: the site says which region.
CT_REPORTED = Code("25045-6", "LN", "CT unspecified body region")
PROCEDURE_SITE = Code("363704007", "SCT", "Procedure site")
CHEST = Code("816094009", "SCT", "Chest")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
OF_INTEREST = Code("113000", "DCM", "Of Interest")

# Headings and text of the report.
FINDINGS = Code("121070", "DCM", "Findings")
FINDING = Code("121071", "DCM", "Finding")
CONCLUSIONS = Code("121076", "DCM", "Conclusions")
CONCLUSION = Code("121077", "DCM", "Conclusion")
COMMENT = Code("121106", "DCM", "Comment")

# What was found, and where.
DISEASE = Code("64572001", "SCT", "Disease")
COVID_19 = Code("840539006", "SCT", "COVID-19")
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
SPATIAL_CONCEPT = Code("309825002", "SCT", "Spatial and Relational Concept")
LUNG = Code("39607008", "SCT", "Lung")
# What a network looked at: not a lesion, and not an opacity.
VISUAL_EXPLANATION = Code("130401", "DCM", "Visual explanation")
LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")
BILATERAL = Code("51440002", "SCT", "Bilateral")

# What was measured.
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
MINIMUM = Code("255605001", "SCT", "Minimum")
MAXIMUM = Code("56851009", "SCT", "Maximum")
VOLUME = Code("118565006", "SCT", "Volume")
INTERPRETATION = Code("363713009", "SCT", "Has interpretation")
POSITIVE = Code("10828004", "SCT", "Positive")
NEGATIVE = Code("260385009", "SCT", "Negative")
PERCENT = Code("%", "UCUM", "Percent")
MILLILITRE = Code("mL", "UCUM", "milliliter")

# How it was made.
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
SEGMENTATION = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
SOURCE_SERIES = Code("121232", "DCM", "Source series for segmentation")
SERIES_UID = Code("112002", "DCM", "Series Instance UID")

# Concepts that no public scheme has; declared in Coding Scheme Identification Sequence.
PRIVATE_SCHEME = "99DICOMNODE"
PRIVATE_SCHEME_NAME = "DICOM AI node private codes"
SHARE_OF_LUNG = Code("LUNG_SHARE", PRIVATE_SCHEME, "Share of lung volume")

# Viewers that show a region write the name of each number beside it, and nothing else of the group. OHIF breaks no line
# and cuts what does not fit: beside a left lung there is room for some 30 characters, value and unit
# among them.
OUTPUT_SHOWN = Code("COVID19_OUTPUT", PRIVATE_SCHEME, "COVID-19 research AI")
LOWEST_SHOWN = Code("COVID19_LOWEST", PRIVATE_SCHEME, "Varies from")
HIGHEST_SHOWN = Code("COVID19_HIGHEST", PRIVATE_SCHEME, "Varies to")
RIGHT_LUNG_SHOWN = Code("RIGHT_LUNG_ML", PRIVATE_SCHEME, "Right lung")
LEFT_LUNG_SHOWN = Code("LEFT_LUNG_ML", PRIVATE_SCHEME, "Left lung")
RIGHT_REGION_SHOWN = Code("RIGHT_REGION_ML", PRIVATE_SCHEME, "Right lung, drove AI")
LEFT_REGION_SHOWN = Code("LEFT_REGION_ML", PRIVATE_SCHEME, "Left lung, drove AI")
