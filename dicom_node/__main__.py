"""`python -m dicom_node` is `dicom-node`.

The node starts its own processes this way. They load their own commands alone: all of them together take seconds.
"""

import sys


def main() -> None:
    """Run the command line."""
    from dicom_node.cli import processes

    if sys.argv[1:2] and sys.argv[1] in processes.CHILDREN:
        processes.main()
        return
    from dicom_node.cli import app

    app.main()


if __name__ == "__main__":
    main()
