"""Results as HL7 v2.5.1 ORU^R01 over MLLP."""
