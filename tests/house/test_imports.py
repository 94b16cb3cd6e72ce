"""Who may import whom: contracts in pyproject.toml, and fresh interpreters that try it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import robustode

PACKAGE = Path(robustode.__file__).parent
CHECKOUT = Path(__file__).parents[2]
TOP_LEVEL = {"models", "attacks", "bench", "tests"}
"""Folders of the checkout, which no import statement may take for packages of their own."""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="import-linter with private_modules needs Python 3.11")
def test_imports_keep_the_contracts():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run(
        [*command, "--no-cache", "--config", str(CHECKOUT / "pyproject.toml")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def absolute_imports(path: Path) -> set[str]:
    """The first name of every absolute import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {
        *(a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names),
        *(n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level),
    }
    return {module.split(".")[0] for module in modules}


def test_the_package_imports_itself_relatively():
    files = [
        *PACKAGE.glob("*.py"),
        *(p for name in ("models", "attacks", "bench") for p in (PACKAGE / name).rglob("*.py")),
    ]
    assert len(files) > 100
    wrong = [path for path in files if absolute_imports(path) & {"robustode", *TOP_LEVEL}]
    assert wrong == []


def test_tests_import_the_installed_package():
    files = list((CHECKOUT / "tests").rglob("*.py"))
    assert len(files) > 50
    assert [path for path in files if absolute_imports(path) & TOP_LEVEL] == []


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
    assert "/nonexistent-robustode" in done.stderr


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
