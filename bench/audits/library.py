"""Which checks there are, in the order of an audit sheet. No torch until `load_all` is called."""

from __future__ import annotations

from importlib import import_module

from .registry import AUDITS, Audit

RECORDS = ("monotone", "noise_attack", "certified")
"""Files whose checks read records alone."""
MODEL = (
    "finite",
    "logit_form",
    "determinism",
    "batch_independence",
    "zero_gradients",
    "gradient_fidelity",
    "solver_sensitivity",
    "solver_transfer",
    "tolerance_sweep",
    "stiffness",
    "step_counts",
    "black_box",
    "unbounded",
    "loss_convergence",
    "binarisation",
    "backbone",
    "contraction",
    "lipschitz",
)
"""Files whose checks ask the model."""


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


def _load(modules: tuple[str, ...]) -> None:
    for module in modules:
        import_module(f".{module}", __package__)
