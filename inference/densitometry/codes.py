"""The concepts that a densitometry reports.

No public scheme has the share of low attenuation or a percentile density; both are private. (87433001, SCT, Pulmonary
emphysema) is a disorder, and is not used: a threshold measures attenuation and diagnoses nothing.
"""

from config.coding import BILATERAL, Code
from config.coding import LUNG as LUNG
from config.coding import MILLILITRE as MILLILITRE
from config.coding import VOLUME as VOLUME
from inference.densitometry.density import Side, Third

PRIVATE_SCHEME = "99DICOMNODE"

ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
SPATIAL_CONCEPT = Code("309825002", "SCT", "Spatial and Relational Concept")
LATERALITY: dict[Side, Code] = {
    "both": BILATERAL,
    "right": Code("24028007", "SCT", "Right"),
    "left": Code("7771000", "SCT", "Left"),
}
ZONE: dict[Third, Code] = {
    "upper": Code("281392002", "SCT", "Upper zone of lung"),
    "middle": Code("281393007", "SCT", "Middle zone of lung"),
    "lower": Code("281394001", "SCT", "Lower zone of lung"),
}

LOW_ATTENUATION = Code("LAA", PRIVATE_SCHEME, "Low attenuation area of lung")
LAA_PERCENT = Code("LAA_SHARE", PRIVATE_SCHEME, "Low attenuation area, share of lung parenchyma")
PERCENTILE_DENSITY = Code("PERC_DENSITY", PRIVATE_SCHEME, "Percentile density of lung parenchyma")
ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
THRESHOLD = Code("112032", "DCM", "Threshold Attenuation Coefficient")
PERCENTILE = Code("PERCENTILE", PRIVATE_SCHEME, "Percentile of the distribution")
MEAN = Code("373098007", "SCT", "Mean")

PERCENT = Code("%", "UCUM", "Percent")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
