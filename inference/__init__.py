"""From DICOM files to a finding: numpy and torch, no network, no database."""
