"""Text-guided image manipulation, two ways: latent diffusion and StyleCLIP."""

__version__ = "0.1.0"

_LAZY = {"editor": "registry", "editors": "registry"}


def __getattr__(name: str):
    """Imports torch only when something that needs it is asked for."""
    if name in _LAZY:
        from importlib import import_module
        return getattr(import_module(f"mmgen.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'mmgen' has no attribute {name!r}")
