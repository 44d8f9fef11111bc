"""`python -m dicom_node` is `dicom-node`."""

from dicom_node.cli.main import main

if __name__ == "__main__":
    main()
