"""Models that each commit one sin against a robustness number, and an honest twin of each."""

from __future__ import annotations

from importlib import import_module

from robustode.tests.gallery.base import Case, Sin, audit_case, context_of

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
SINS: dict[str, Sin] = {name: import_module(f".{name}", __name__).SIN for name in FILES}

__all__ = ["SINS", "Case", "Sin", "audit_case", "context_of"]
