"""Settings of destinations that are no DICOM peers, one module for each kind."""
