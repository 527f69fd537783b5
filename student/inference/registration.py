"""Makes transformers' auto classes know an exported student, as soon as they are imported and no sooner.

Importing transformers takes seconds, which `student-train --help` need not spend.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

KNOWN_TO = {
    "transformers.models.auto.configuration_auto": "student.inference.hf_config",
    "transformers.models.auto.modeling_auto": "student.inference.hf",
}
"""Where auto classes are defined, and which of our modules registers there when it is imported."""


class _Registrar:
    """Finds the modules of `KNOWN_TO` as Python would, and has ours imported right after they have run."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in KNOWN_TO else None
        if spec is not None and spec.loader is not None:
            _import_after(spec.loader, KNOWN_TO[name])
        return spec


def _import_after(loader: Any, ours: str) -> None:
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        importlib.import_module(ours)

    loader.exec_module = execute_and_register


def register_with_transformers() -> None:
    """Register now where transformers' auto classes are imported already, else when they are."""
    if _Registrar not in sys.meta_path:
        sys.meta_path.insert(0, _Registrar)
    for theirs, ours in KNOWN_TO.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
