"""Rooms are layers: a module imports only what lies below it, and never itself through others."""

import ast
from collections import defaultdict
from pathlib import Path

import mmgen

ROOT = Path(mmgen.__file__).parent
LAYERS = [  # lowest first; rooms of one layer do not import one another, except from `base`
    ["base"],
    ["backbones", "editing"],
    ["training", "data"],
    ["clip", "danbooru", "identity", "instructions"],
    ["metrics"],
    ["benchmark", "ldm"],
    ["stylegan"],
    ["styleclip", "paper_figures"],
    ["jobs"],
    ["app", "report"],
]


def imports() -> dict[str, set[str]]:
    "module → the modules of mmgen that it imports anywhere, inside functions too"
    graph = defaultdict(set)
    for file in ROOT.rglob("*.py"):
        if file.name in ("__init__.py", "_modidx.py", "_moved.py"):
            continue
        module = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[module] |= {a.name for a in node.names if a.name.startswith("mmgen.")}
            elif isinstance(node, ast.ImportFrom):
                package = module.split(".")[: -node.level] if node.level else []
                base = ".".join(package + ([node.module] if node.module else []))
                for alias in node.names if base.split(".")[0] == "mmgen" else ():
                    name = f"{base}.{alias.name}"
                    graph[module].add(
                        name if (ROOT.parent / name.replace(".", "/")).with_suffix(".py").exists() else base
                    )
    return graph


def test_no_import_goes_upward():
    rank = {room: i for i, layer in enumerate(LAYERS) for room in layer}
    rooms = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists() and p.name != "packaged"}
    assert rooms == set(rank), "each room has its layer"
    wrong = []
    for module, targets in imports().items():
        room = module.split(".")[1]
        for target in targets:
            other = (target.split(".") + [""])[1]
            if other in rank and other != room and rank[other] >= rank[room]:
                wrong.append(f"{module} → {target}")
    assert not wrong, sorted(wrong)


def test_no_import_goes_in_a_circle():
    graph = {module: {t for t in targets if t != module} for module, targets in imports().items()}
    while True:  # take away what imports nothing that is left
        leaves = {module for module, targets in graph.items() if not targets & graph.keys()}
        if not leaves:
            break
        graph = {module: targets for module, targets in graph.items() if module not in leaves}
    assert not graph, f"circles among {sorted(graph)}"
