"""The command line, `dicom-node`: one module for each group of commands; `app` puts them together."""
