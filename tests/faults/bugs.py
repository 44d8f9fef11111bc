"""Seeded bugs (bugs.toml): each patches a module's source when the module is imported.

NODE_SEEDED_BUG names the bug. `python -m pytest -p tests.faults.bugs` gives it to the tests' own process, and
zygote.py to the nodes that it forks. The product's code knows nothing of this. A patch that no longer fits its module
is an error.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

VARIABLE = "NODE_SEEDED_BUG"
KILLS = "tests/faults/test_kills.py::test_after_a_kill_nothing_is_lost_and_nothing_comes_twice"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Bug:
    """A bug. patches: (module, text, replacement). tests: node ids, of which at least one must fail."""

    what: str
    patches: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def _read() -> dict[str, Bug]:
    written = tomllib.loads((Path(__file__).parent / "bugs.toml").read_text())
    return {
        name: Bug(
            bug["what"],
            tuple((patch["module"], patch["old"], patch["new"]) for patch in bug["patches"]),
            (*(f"{KILLS}[{'-'.join(kill.split())}]" for kill in bug.get("kills", ())), *bug.get("tests", ())),
        )
        for name, bug in written.items()
    }


BUGS = _read()


class _Patched(importlib.machinery.SourceFileLoader):
    bug = ""

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text()
        for module, old, new in BUGS[self.bug].patches:
            if module == fullname:
                if source.count(old) != 1:
                    raise AssertionError(f"the bug {self.bug} no longer fits {fullname}")
                source = source.replace(old, new)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, bug: str) -> None:
        # Kept: a node that is forked has other variables, and imports some modules only when it needs them.
        self._bug = bug

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname not in {module for module, _, _ in BUGS[self._bug].patches}:
            return None
        file = str(ROOT / (fullname.replace(".", "/") + ".py"))
        loader = _Patched(fullname, file)
        loader.bug = self._bug
        spec = importlib.machinery.ModuleSpec(fullname, loader, origin=file)
        spec.has_location = True
        return spec


def apply() -> None:
    """Give this process the bug that the environment names, if any. Call it before the node's modules are imported."""
    if os.environ.get(VARIABLE):
        early = {module for module, _, _ in BUGS[os.environ[VARIABLE]].patches} & sys.modules.keys()
        assert not early, f"imported too early for a bug: {early}"
        sys.meta_path.insert(0, _Finder(os.environ[VARIABLE]))


if "pytest" in sys.modules and os.environ.get(VARIABLE):
    apply()
