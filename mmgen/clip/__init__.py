def __getattr__(name: str):
    """What was imported from mmgen.clip before it became a folder."""
    if name.startswith("__"): raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module("mmgen.clip.model"), name)
