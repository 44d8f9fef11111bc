"""FHIR R4: a result as one transaction bundle."""
