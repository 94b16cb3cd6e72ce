"""Which checks there are, in the order of an audit sheet. No torch until `load_all` is called."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from .registry import AUDITS, Audit

RECORDS = ("monotone", "noise_attack", "certified")
"""Files whose checks read records alone."""
MODEL = {
    "finite": "finite",
    "logit_form": "logits",
    "determinism": "determinism",
    "batch_independence": "batch-independence",
    "zero_gradients": "zero-gradients",
    "gradient_fidelity": "gradient-fidelity",
    "solver_sensitivity": "solver-sensitivity",
    "solver_transfer": "solver-transfer",
    "tolerance_sweep": "tolerance-sweep",
    "stiffness": "nfe-and-stiffness",
    "step_counts": "step-counts",
    "black_box": "black-box",
    "unbounded": "unbounded-attack",
    "loss_convergence": "loss-convergence",
    "binarisation": "binarisation",
    "backbone": "backbone-transfer",
    "contraction": "contraction",
    "lipschitz": "lipschitz-bound",
}
"""Files whose checks ask the model, and the name of each check, which a report knows without torch."""


def records_audits() -> list[Audit]:
    """The checks that read records alone; no torch is loaded."""
    _load(RECORDS)
    return [audit for audit in AUDITS if audit.needs == "records"]


def all_audits() -> list[Audit]:
    """Every check, those that ask the model first."""
    _load(MODEL)
    _load(RECORDS)
    return sorted(AUDITS, key=lambda audit: audit.needs != "model")


def audit_names() -> list[str]:
    """The names of all checks."""
    return [audit.name for audit in all_audits()]


def _load(modules: Iterable[str]) -> None:
    for module in modules:
        import_module(f".checks.{module}", __package__)
