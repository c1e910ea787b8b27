def __getattr__(name: str):
    """Names that mmgen.jobs had before it became a folder."""
    if name.startswith("__"): raise AttributeError(name)
    from importlib import import_module

    moved = {
        "EditConfig": "editing",
        "UNetJob": "ldm",
        "LDMConfig": "ldm",
        "AutoencoderConfig": "ldm",
        "CLIPConfig": "clip",
        "OracleConfig": "metrics",
    }
    return getattr(import_module(f"mmgen.{moved.get(name, 'training')}.config"), name)
