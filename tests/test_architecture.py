"""The rooms and their walls: imports go one way, and the command line starts without the heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "quantkit"

# what each room may know of the others; modules of the standard library and of third parties are not listed
ALLOWED = {
    "errors": set(),
    "model": {"errors"},
    "grid": {"errors"},
    "blockgrid": set(),
    "recipe": {"errors"},
    "source": {"errors"},
    "tensorfile": {"errors"},
    "output": {"errors", "tensorfile"},
    "checkpoint": {"errors", "source", "tensorfile"},
    "budget": {"errors", "recipe"},
    "calibration": {"errors", "output", "recipe"},
    "fold": {"model"},
    "statistics": {"calibration", "checkpoint", "errors", "model"},
    "stats_file": {"errors", "model", "output", "statistics", "tensorfile"},
    "gather": {"calibration", "checkpoint", "errors", "model", "output", "recipe", "statistics", "stats_file"},
    "provenance": {"calibration", "checkpoint", "recipe"},
    "methods": {"blockgrid", "errors", "fold", "grid", "model"},
    "formats": {"blockgrid", "errors", "grid"},
    "blockwise": {"errors", "fold", "grid", "methods", "model", "plan", "recipe", "statistics"},
    "tune": {"blockwise", "calibration", "checkpoint", "errors", "grid", "model", "statistics"},
    "plan": {"budget", "checkpoint", "errors", "formats", "grid", "model", "recipe"},
    "sensitivity": {"calibration", "checkpoint", "errors", "grid", "methods", "model", "statistics"},
    "integrity": {"checkpoint", "errors", "fold", "formats", "grid", "model", "tensorfile"},
    "verify": {
        "calibration", "checkpoint", "errors", "formats", "grid", "integrity", "model", "output", "recipe",
        "tensorfile",
    },
    "report": {"calibration", "errors", "output", "recipe", "verify"},
    "quantize": {
        "blockwise", "budget", "calibration", "checkpoint", "errors", "formats", "gather", "grid", "methods", "model",
        "output", "plan", "provenance", "recipe", "sensitivity", "statistics", "tune",
    },
    "bnb": {
        "checkpoint", "errors", "formats", "gather", "grid", "model", "output", "plan", "provenance", "quantize",
        "recipe",
    },
    "gguf": {
        "blockgrid", "blockwise", "budget", "checkpoint", "errors", "fold", "formats", "gather", "grid", "integrity",
        "methods", "model", "output", "plan", "provenance", "quantize", "recipe", "sensitivity", "statistics",
        "tensorfile",
    },
    "reproduce": {"errors", "recipe"},
    "sweep": {
        "bnb", "checkpoint", "doctor", "errors", "gather", "gguf", "methods", "output", "plan", "quantize", "recipe",
        "report", "statistics", "verify",
    },
    "doctor": {"checkpoint", "errors", "plan", "recipe", "source"},
    "card": {"checkpoint", "errors", "gguf", "integrity", "output", "report", "tensorfile", "verify"},
    "publish": {"card", "errors", "tensorfile"},
    "serve": {"calibration", "checkpoint", "errors", "formats", "gguf", "output", "verify"},
    "text": set(),
    "chat": {"calibration", "checkpoint", "errors", "gguf", "recipe", "verify"},
    "cli": {
        "bnb", "calibration", "card", "chat", "checkpoint", "doctor", "errors", "gguf", "integrity", "plan", "publish",
        "quantize", "recipe", "report", "reproduce", "serve", "sweep", "text", "verify",
    },
    "__main__": {"cli"},
    "__init__": set(),
}  # fmt: skip


def _rooms_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "quantkit":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("quantkit.")}
    return found - {"__version__"}


def test_imports_go_one_way() -> None:
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        room = relative.parts[0].removesuffix(".py")
        seen.add(room)
        assert room in ALLOWED, f"{relative}: a new room; say in this test what it may know"
        extra = _rooms_of(path) - ALLOWED[room] - {room}
        assert not extra, f"{relative} must not import {sorted(extra)}"
    assert seen == set(ALLOWED)


def test_the_rules_have_no_cycle() -> None:
    done: set[str] = set()
    rooms = dict(ALLOWED)
    while rooms:
        ready = {room for room, known in rooms.items() if known <= done}
        assert ready, f"a cycle among {sorted(rooms)}"
        done |= ready
        rooms = {room: known for room, known in rooms.items() if room not in ready}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['quantkit', '--help']\nfrom quantkit.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in result.stdout
    for command in ("awq", "gptq", "rtn", "bnb", "verify", "compare", "calib"):
        assert command in result.stdout
