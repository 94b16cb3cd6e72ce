"""Models with one defect each that makes a robustness number wrong, and a control without it for each."""

from __future__ import annotations

from importlib import import_module

from robustode.tests.gallery.base import Case, Defect, audit_case, context_of

FILES = (
    "batch_coupling",
    "two_solvers",
    "rounded_logits",
    "huge_logits",
    "saturated_tanh",
    "quantised_input",
    "stochastic",
    "stiff_euler",
    "understated_bound",
    "loose_adjoint",
    "weak_attack",
    "not_a_number",
    "softmax_outputs",
)
DEFECTS: dict[str, Defect] = {name: import_module(f".{name}", __name__).DEFECT for name in FILES}

__all__ = ["DEFECTS", "Case", "Defect", "audit_case", "context_of"]
