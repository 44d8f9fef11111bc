"""Networking and wiring: the only package that knows DICOM associations."""
