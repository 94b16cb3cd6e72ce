"""Who may import whom, read from the source and tried in fresh interpreters."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import robustode
from robustode.bench.audits.library import MODEL, RECORDS

ROOT = Path(robustode.__file__).parent
FILES = sorted(
    [
        *ROOT.glob("*.py"),
        *(p for folder in ("models", "attacks", "bench") for p in (ROOT / folder).rglob("*.py")),
    ]
)
HEAVY = {"torch", "torchvision", "torchattacks", "torchdiffeq"}
REPORTING = [
    "records",
    "store",
    "breaks",
    "stats",
    "headline",
    "board.leaderboard",
    "board.leaderboard_json",
    "board.leaderboard_tex",
    "board.outcomes",
    "board.ranking",
    "board.papers",
    "drawing.bounds",
    "drawing.gap",
    "drawing.sandwich",
    "drawing.critical",
    "figures",
    "rendering",
    "report",
    "checking.restate",
    "pages.cards",
    "pages.page",
    "pages.grid",
    "pages.panels",
    "pages.sheets",
    "pages.citation",
    "pages.reproduce",
    "preset",
    "outside.scaffold",
    "cli",
    "arguments",
    "listing",
    "progress",
    "board.tables",
    "text",
    "board.terminal",
    "style",
    "drawing.tradeoff",
    "drawing.heatmap",
    "drawing.matrix",
    "drawing.examples",
    "benchmarks",
    "pages.timings",
    "pages.template",
    "audits.registry",
    "audits.library",
    "audits.evidence",
    "audits.outcome",
    "audits.sheet",
    "audits.page",
    "audits.plots",
    *(f"audits.{name}" for name in RECORDS),
]
"""Modules of bench that must work where torch is not installed."""
STRICT = set(REPORTING) - {"cli", "listing"}
"""Those that do not even import it inside a function."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("robustode", *(p for p in parts if p != "__init__")))


NAMES = {module_name(path): path for path in FILES}


def _lazy(tree: ast.Module) -> set[ast.AST]:
    """Every node inside a function or under TYPE_CHECKING."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if function or typing:
            inside.update(child for child in ast.walk(node) if child is not node)
    return inside


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Absolute names of what a file imports; with `lazy`, inside its functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set() if lazy else _lazy(tree)
    found: set[str] = set()
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                full = f"{target}.{alias.name}"
                found.add(full if full in NAMES else target)
    return found


def own(path: Path, *, lazy: bool = True) -> set[str]:
    return {name for name in imports(path, lazy=lazy) if name.split(".")[0] == "robustode"}


def layer(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else "root"


ALLOWED = {
    "root": {"attacks", "models", "bench"},
    "_errors": set(),
    "_registry": {"_errors"},
    "models": {"_errors", "_registry", "models"},
    "attacks": {"_errors", "_registry", "attacks"},
    "bench": {"_errors", "_registry", "models", "attacks", "bench", "root"},
}


def test_every_layer_is_seen():
    assert {layer(name) for name in NAMES} == set(ALLOWED)
    assert {f"robustode.bench.{name}" for name in REPORTING} <= set(NAMES)


BELOW = {
    "timing": set(),
    "outside": set(),
    "audits": {"outside"},
    "board": {"audits", "timing"},
    "pages": {"board", "audits", "timing"},
    "drawing": {"board"},
    "checking": {"outside"},
}
"""What each folder of bench may import of the others; what lies in none of them may be imported by all."""


def folder(name: str) -> str | None:
    parts = name.split(".")
    return parts[2] if parts[1:2] == ["bench"] and len(parts) > 3 else None


def test_folders_of_the_harness_import_one_way():
    assert {folder(name) for name in NAMES} - {None} == set(BELOW)
    for name, path in NAMES.items():
        if home := folder(name):
            used = {folder(other) for other in own(path)} - {None, home}
            assert used <= BELOW[home], f"{name} imports from {used - BELOW[home]}"


def test_no_module_imports_itself_by_way_of_others():
    """Among all imports that are made at once, not inside a function."""
    left = {name: own(path, lazy=False) & set(NAMES) for name, path in NAMES.items()}
    while free := [name for name, used in left.items() if not used & set(left)]:
        for name in free:
            del left[name]
    assert not left, "these import one another"


def test_every_file_of_an_audit_is_known_to_the_library():
    shared = {
        "registry",
        "library",
        "evidence",
        "outcome",
        "sheet",
        "page",
        "plots",
        "context",
        "run",
        "adjoint",
    }
    files = {path.stem for path in (ROOT / "bench" / "audits").glob("*.py")} - {"__init__"}
    assert files == {*shared, *MODEL, *RECORDS}


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_one_way(name):
    used = {layer(other) for other in own(NAMES[name])}
    assert used <= ALLOWED[layer(name)], f"{name} imports from {used - ALLOWED[layer(name)]}"


@pytest.mark.parametrize("name", NAMES)
def test_the_package_imports_itself_relatively(name):
    tree = ast.parse(NAMES[name].read_text(encoding="utf-8"))
    absolute = {
        *(a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names),
        *(n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level),
    }
    assert not {"robustode", "models", "attacks", "bench"} & {module.split(".")[0] for module in absolute}


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].rglob("*.py")), ids=lambda p: p.name)
def test_tests_import_the_installed_package(path):
    roots = {module.split(".")[0] for module in _absolute(path)}
    assert not {"models", "attacks", "bench", "tests"} & roots


def _absolute(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        *(a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names),
        *(n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)),
    }


@pytest.mark.parametrize("name", REPORTING)
def test_reporting_reaches_no_torch_when_imported(name):
    seen: set[str] = set()
    todo = [f"robustode.bench.{name}", "robustode"]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        found = imports(NAMES[module], lazy=False)
        assert not HEAVY & {other.split(".")[0] for other in found}, f"{name} reaches torch in {module}"
        todo.extend(other for other in found if other in NAMES)
    assert not {layer(module) for module in seen} & {"models", "attacks"}


@pytest.mark.parametrize("name", sorted(STRICT))
def test_reporting_imports_no_torch_in_a_function_either(name):
    found = imports(NAMES[f"robustode.bench.{name}"])
    assert not HEAVY & {other.split(".")[0] for other in found}
    assert not {"models", "attacks"} & {layer(other) for other in found if other.startswith("robustode")}


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, cwd="/"
    )


def test_help_lists_and_report_work_without_torch():
    done = python(
        "import sys\n"
        "heavy = 'torch', 'torchvision', 'torchattacks', 'torchdiffeq'\n"
        "sys.modules.update({name: None for name in heavy})\n"
        "import robustode\n"
        "import robustode.bench.report.report\n"
        "from robustode.bench.cli.main import main\n"
        "assert main(['list', 'presets']) == 0\n"
        "assert main(['report', '--out', '/nonexistent-robustode']) == 2\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not [m for m in sys.modules if m.startswith(('robustode.models', 'robustode.attacks'))]\n"
    )
    assert done.returncode == 0, done.stderr
    assert "quick" in done.stdout
    assert "usage: robustode" in done.stdout
    assert done.stderr.startswith("robustode: error: no records in /nonexistent-robustode")


def test_importing_loads_torch_only_on_use_and_leaves_no_second_registry():
    done = python(
        "import sys, robustode\n"
        "assert 'torch' not in sys.modules\n"
        "robustode.register_model, robustode.evaluate, robustode.register_threat\n"
        "assert 'torch' in sys.modules\n"
        "assert not {'models', 'attacks', 'bench'} & set(sys.modules)\n"
        "print(*robustode.models.MODELS.names())\n"
    )
    assert done.returncode == 0, done.stderr
    assert "ch-node" in done.stdout


def test_this_process_holds_one_registry():
    assert not {"models", "attacks", "bench"} & set(sys.modules)
