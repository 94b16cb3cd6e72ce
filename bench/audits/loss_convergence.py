"""Had the attack arrived when it stopped?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...attacks._losses import cross_entropy
from ..queries import QueriedModel
from .context import Context, array
from .registry import Verdict, judged, register_audit

LIMIT, LAST = 0.05, 10


class _Diary(nn.Module):
    """A model that writes down the loss of every query, (N,) each."""

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels = model, labels
        self.losses: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        if len(images) == len(self.labels):
            self.losses.append(cross_entropy(logits.detach().double(), self.labels))
        return logits


@register_audit(
    "loss-convergence",
    title="the attack's loss has settled when it stops",
    needs="model",
    cost="the stored PGD once, or PGD-20",
    reference="Pintor et al., Indicators of attack failure, NeurIPS 2022, arXiv 2106.09947",
)
def check(context: Context) -> Verdict:
    """Best loss so far, scaled to [0, 1] over the run: moves above .05 in the last 10 steps flag.

    The loss is log sum_{k != y} exp z_k - z_y, which rises with the cross-entropy and does not flatten with
    it; the mean is over the samples that survive. Steps and restarts are those of the stored PGD of this norm
    and eps, one restart after the other; a run of fewer than 20 steps is judged on its last half.
    """
    cells = [r.cell for r in context.evidence.attacks(context.norm) if r.cell.threat == f"pgd-{context.norm}"]
    stored = next((dict(c.parameters) for c in cells if abs(c.strength - context.eps) < 1e-9), {})
    threat = context.threat("pgd", **stored)
    steps, restarts = int(threat.parameters["steps"]), int(threat.parameters["restarts"])
    diary = _Diary(context.model, context.labels)
    whole = QueriedModel(diary, context.num_classes)
    survivors = context.correct()
    for restart in range(restarts):
        with torch.enable_grad():
            once = threat.configure(restarts=1)
            attacked = once(
                whole, context.images.clone(), context.labels, context.eps, context.seed + restart
            )
        survivors = survivors & (context.logits(attacked.detach()).argmax(1) == context.labels)
    losses = torch.stack(diary.losses).cummax(0).values
    if not bool(survivors.any()):
        sentence = f"PGD-{steps} breaks every sample: it had arrived."
        return judged(0.0, LIMIT, sentence, unit="of the loss's range")
    ours = losses[:, survivors]
    low, high = ours[0], ours[-1]
    scaled = (ours - low) / (high - low).clamp_min(1e-12)
    curve = scaled.mean(1)
    back = min(LAST, max(1, steps * restarts // 2))
    moved = high > low
    late = torch.where(moved, 1 - scaled[-1 - back], 0.0)
    value = float(late.mean())
    sentence = (
        f"In the last {back} of {steps * restarts} steps of PGD the best loss of the survivors moves by "
        f"{value:.3f} of its range"
    )
    sentence += ": the attack was stopped before it arrived." if value > LIMIT else "."
    return judged(
        value,
        LIMIT,
        sentence,
        unit="of the loss's range",
        arrays={"x": array(torch.arange(len(curve))), "best loss so far": array(curve)},
        axes=("step", "best loss, scaled"),
    )
