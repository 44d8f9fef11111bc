"""The durable steps of the node, read from its code, so that no new one goes untested.

A step is a transaction, named by the function that commits it, or a function that changes the file system.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE_CALLS = {"fsync", "unlink", "rename", "replace", "mkdir", "makedirs", "rmtree", "write_bytes", "write_text"}


def transactions() -> set[str]:
    """Every function of the node that commits a transaction: "module.qualified.name"."""
    return {name for name, call in _calls() if call == "transaction"}


def file_steps() -> set[str]:
    """Every function that makes, syncs or removes something in the file system."""
    return {name for name, call in _calls() if call in FILE_CALLS}


def _calls() -> Iterator[tuple[str, str]]:
    """The functions of dicom_node and storage, and the name of each function or method that they call."""
    for package in ("dicom_node", "storage"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield from _calls_in(ast.parse(path.read_text()), module, "")


def _calls_in(node: ast.AST, module: str, scope: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{scope}{child.name}"
            inner += "." if isinstance(child, ast.ClassDef) else ".<locals>."
            yield from _calls_in(child, module, inner)
            continue
        if isinstance(child, ast.Call):
            called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
            # Path.replace has one argument; str.replace has two, and dataclasses.replace names what it changes.
            one = isinstance(child.func, ast.Attribute) and len(child.args) == 1 and not child.keywords
            if called != "replace" or one:
                yield f"{module}.{scope.removesuffix('.').removesuffix('.<locals>')}", called
        yield from _calls_in(child, module, scope)
