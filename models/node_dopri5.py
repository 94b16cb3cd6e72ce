"""Vanilla neural ODE solved by an adaptive method: its step sizes depend on the input and on the batch."""

from __future__ import annotations

from .node import PAPER, build
from .registry import register_model

register_model(
    "node-dopri5",
    summary="x' = tanh(K x + b), solved by adaptive Dormand-Prince 5(4)",
    reference=PAPER,
    hyperparameters={"method": "dopri5"},
    recipe={"weight_decay": 2e-4},
    expected_failures={
        "batch-independence": "the adaptive solver accepts a step by one error norm over the whole batch; "
        "attacks that are reported must break a sample at batch size 1 too",
    },
)(build)
