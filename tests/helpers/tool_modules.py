"""The programs of tools/ as modules: they import each other by name, as when one of them is run."""

import importlib
import sys
from types import ModuleType
from unittest.mock import patch

from tests.helpers import ROOT


def script(name: str) -> ModuleType:
    """The module tools/NAME.py."""
    with patch.object(sys, "path", [str(ROOT / "tools"), *sys.path]):
        return importlib.import_module(name)
