"""Imports point one way."""

import ast
from pathlib import Path

import condensate

ROOT = Path(condensate.__file__).parent

LAYERS = [
    {"errors", "ending", "collecting", "allocation"},
    {"atomic", "capabilities", "lanes", "compiler", "sgd"},
    {"streams", "whitening", "ranks", "recording", "compute"},
    {"augment", "classic", "networks"},
    {"examples", "together"},
    {"data", "parameterizations", "losses"},
    {"training"},
    {"synthetic", "coresets", "experts"},
    {"starts"},
    {"objectives", "evaluation"},
    {"loop", "continual", "privacy"},
    {"recipe"},
    {"schema"},
    {"sheets"},
    {"records"},
    {"assemble"},
    {"settling"},
    {"pictures", "figures", "console", "rates", "peaks"},
    {"provenance"},
    {"scoring", "planning", "sessions"},
    {"condensing"},
    {"rows"},
    {"runs"},
    {"studies", "summaries"},
    {"tables", "report"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Parts of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "condensate":
            found |= {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("condensate."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("condensate.")}
    return found


FILES = [file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"]


def test_layers__every_part_has_its_place():
    assert {part_of(file) for file in FILES} == set(RANK)


def test_layers__imports_point_down():
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in FILES
        for name in imported(file)
        if name != part_of(file) and RANK[name] >= RANK[part_of(file)]
    ]
    assert not wrong


def test_layers__storages_and_objectives_do_not_know_each_other():
    for file in FILES:
        if part_of(file) == "parameterizations":
            assert not imported(file) - {"parameterizations", "errors"}
        if part_of(file) == "objectives":
            assert "parameterizations" not in imported(file)


def test_layers__seeding_and_reseeding_stand_in_streams_alone():
    for file in FILES:
        if file.name != "streams.py":
            assert "manual_seed" not in file.read_text(), file
