"""The whole command line, `dicom-node`: one module for each group of commands.

Exit codes: 0 done (a series that was refused with a reason is done), 1 it failed, 2 wrong usage,
3 a peer could not be reached, 78 the configuration is wrong.
"""

from dicom_node.cli.main import MODULES, main, with_commands

__all__ = ["app", "main"]

app = with_commands(tuple(dict.fromkeys(module for modules in MODULES.values() for module in modules)))
