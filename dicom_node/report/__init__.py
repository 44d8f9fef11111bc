"""Finding -> DICOM objects: Structured Report, "not analysed" report, segmentation, summary image."""
