"""Has the attack converged when it stops?"""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor, nn

from ....attacks.core.losses import cross_entropy
from ....attacks.core.seeds import Purpose, stream_seeds
from ...runtime.checked_model import CheckedModel
from ..context import Context
from ..measures import array
from ..registry import AuditResult, measured, register_audit

LIMIT, LAST = 0.05, 10


class _LossRecorder(CheckedModel):
    """A model that records the loss of every query, (N,) each: NaN for a sample without an answer."""

    def __init__(self, model: nn.Module, num_classes: int, labels: Tensor) -> None:
        super().__init__(model, num_classes, per_sample=True)
        self.labels = labels
        self.losses: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if len(images) == len(self.labels):
            self.losses.append(cross_entropy(logits.detach().double(), self.labels))
        return logits

    def pull_back(self, x: Tensor, cotangent: Tensor) -> Tensor:
        recorded = len(self.losses)
        gradient = super().pull_back(x, cotangent)
        del self.losses[recorded:]
        return gradient

    def retry(self, error: BaseException) -> bool:
        again = super().retry(error)
        if again:
            self.losses.clear()
        return again


@register_audit(
    "loss-convergence",
    title="the attack's loss has converged when it stops",
    needs="model",
    cost="the stored PGD once, or PGD-20",
    reference="Pintor et al., Indicators of attack failure, NeurIPS 2022, arXiv 2106.09947",
    version=3,
)
def check(context: Context) -> AuditResult:
    """Best loss so far, scaled to [0, 1] over a restart: moves above .05 in its last 10 steps flag.

    It flags where a one-sided t test over the survivors puts the mean above .05 at the 5% level: a few of
    them may still move in any attack.

    The loss is log sum_{k != y} exp z_k - z_y, which rises with the cross-entropy and does not flatten with
    it; the mean is over the samples that survive all restarts, and the restart that moves most decides.
    Steps and restarts are those of the stored PGD of this norm and eps. A restart of fewer than 40 steps is
    compared over its last quarter: PGD-20, whose steps add up to 2.5 radii, needs about half of them to cross
    the ball.
    """
    cells = [r.cell for r in context.stored.attacks(context.norm) if r.cell.threat == f"pgd-{context.norm}"]
    stored = next((dict(c.parameters) for c in cells if abs(c.strength - context.eps) < 1e-9), {})
    threat = context.threat("pgd", **stored)
    steps, restarts = int(threat.parameters["steps"]), int(threat.parameters["restarts"])
    once = threat.configure(restarts=1)
    survivors = context.correct()
    runs: list[Tensor] = []
    for restart in range(restarts):
        recorder = _LossRecorder(context.model, context.num_classes, context.labels)
        seeds = stream_seeds(Purpose.AUDIT, context.seed, restart, context.numbers)
        with torch.enable_grad():
            given = (recorder, context.images.clone(), context.labels, context.eps, seeds)
            attacked = once(*given, early_stopping=False)
        losses = torch.stack(recorder.losses)
        survivors = survivors & (context.predicted(attacked.detach()) == context.labels)
        survivors &= ~losses.isnan().any(0)  # a step without an answer has broken the sample
        runs.append(losses)
    if not bool(survivors.any()):
        sentence = f"PGD-{steps} breaks every sample, so it has converged."
        return measured(0.0, LIMIT, sentence, unit="of the loss's range")
    back = min(LAST, max(1, steps // 4))
    changes = [_late_changes(losses[:, survivors], back) for losses in runs]
    worst = max(range(restarts), key=lambda restart: float(changes[restart][0].mean()))
    late, curve = changes[worst]
    value = float(late.mean())
    flagged = value > LIMIT and value - _margin_of_error(late) > LIMIT
    where = f" (restart {worst + 1} of {restarts}, which moves most)" if restarts > 1 else ""
    sentence = (
        f"In the last {back} of {steps} steps of PGD{where} the best loss of {len(late)} survivors moves by "
        f"{value:.3f} of its range"
    )
    sentence += ": the attack stops before it converges." if flagged else "."
    return measured(
        value,
        LIMIT,
        sentence,
        flagged=flagged,
        unit="of the loss's range",
        arrays={"x": array(torch.arange(len(curve))), "best loss so far": array(curve)},
        axes=("step", "best loss, scaled"),
    )


def _margin_of_error(values: Tensor) -> float:
    """How far the mean of `values` (n,) may lie above the true one: one-sided, 95%, Student's t."""
    count = len(values)
    if count < 2:
        return math.inf
    return float(stats.t.ppf(0.95, count - 1) * values.std() / math.sqrt(count))


def _late_changes(losses: Tensor, back: int) -> tuple[Tensor, Tensor]:
    """How far the best loss of each sample moves in the last `back` steps of a restart (steps, N), (N,).

    And the mean curve, (steps,).
    """
    best = losses.cummax(0).values
    low, high = best[0], best[-1]
    scaled = (best - low) / (high - low).clamp_min(1e-12)
    late = torch.where(high > low, 1 - scaled[-1 - back], 0.0)
    return late, scaled.mean(1)
