"""Solver transfer: examples crafted through the same weights on another solver, scored on the model itself.

An adaptive solver can mask the gradient of the flow it solves, and a coarse grid can be so much a part of the
model that its own gradient misleads. The harness hands the attack one surrogate after the other, see
``Threat.crafted_on``.
"""

from __future__ import annotations

from torch import Tensor

from .algorithms.apgd import apgd
from .core.batch_state import under_attack
from .core.losses import cross_entropy
from .core.types import Model, Norm, Seed
from .registry import register_linf_and_l2


@register_linf_and_l2(
    "solver-transfer",
    l2=2,
    family="transfer",
    needs_gradient=True,
    crafted_on="solvers",
    queries=lambda p: (1 + p["restarts"] * (p["steps"] + 1), p["restarts"] * p["steps"]),
    reference="Huang, Yu, Zhang, Ma, Yao, Adversarial robustness of stabilized neural ODE might be "
    "from obfuscated gradients, PMLR 145, 2021; APGD: Croce, Hein, ICML 2020, arXiv 2003.01690",
)
def solver_transfer(
    norm: Norm,
    model: Model,
    images: Tensor,
    labels: Tensor,
    strength: float,
    seed: Seed,
    *,
    steps: int = 20,
    restarts: int = 1,
) -> Tensor:
    """Auto-PGD on the cross-entropy of a surrogate; the image of its largest margin counts.

    It goes on with samples that the surrogate gets wrong: the model may not.
    """
    with under_attack(model, images, labels, seed, early_stopping=False) as state:

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            return cross_entropy(logits, state.labels[rows])

        for restart in range(restarts):
            apgd(state, loss, strength, norm, steps=steps, purpose=f"ce {restart}")
    return state.best
