"""Text-guided image editing, two ways: latent diffusion and StyleCLIP."""

import sys
from importlib import import_module

__version__ = "0.1.0"

_LAZY = {
    "edit": "app.workbench",
    "editor": "editing.registry",
    "editors": "editing.registry",
    "open_image": "data.images",
    "register": "editing.registry",
}


def __getattr__(name: str):
    """Imports torch only when something that needs it is asked for."""
    if name in _LAZY: return getattr(import_module(f"mmgen.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'mmgen' has no attribute {name!r}")


class _Moved:
    """Says where a module of an earlier version is now; asked only for names that do not exist."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if not name.startswith("mmgen."): return None
        from ._moved import MOVED

        if name in MOVED: raise ModuleNotFoundError(f"{name} has moved; import {MOVED[name]} instead.", name=name)


if not any(getattr(finder, "__name__", "") == "_Moved" for finder in sys.meta_path): sys.meta_path.append(_Moved)
