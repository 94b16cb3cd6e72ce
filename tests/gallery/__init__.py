"""Models with one defect each that makes a robustness number wrong, and a control without it for each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .base import Case, Defect, audit_case, context_of
from .honest import HONEST

FILES = sorted(
    f.stem for f in Path(__file__).parent.glob("[a-z]*.py") if f.stem not in ("base", "honest", "table")
)
DEFECTS: dict[str, Defect] = {name: import_module(f".{name}", __name__).DEFECT for name in FILES}

__all__ = ["DEFECTS", "HONEST", "Case", "Defect", "audit_case", "context_of"]
