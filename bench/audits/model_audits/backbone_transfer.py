"""Is an attack through a frozen part of the model stronger than one through the whole model?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....attacks.core.losses import answered
from ...runtime.checked_model import CheckedModel
from ..context import Context
from ..measures import array, fraction
from ..registry import AuditResult, measured, not_applicable, register_audit

POINTS = 0.5
STEPS = 200


class _Head(nn.Module):
    """A frozen part with a linear head of its own."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images).flatten(1))
        return logits


@register_audit(
    "backbone-transfer",
    title="an attack through a frozen part alone is not stronger",
    needs="model",
    cost="a linear head on the frozen part, PGD-20 with two restarts through it",
    reference="Kang et al., NeurIPS 2021, arXiv 2110.12976 (SODEF), its robustness by transfer",
)
def check(context: Context) -> AuditResult:
    """PGD-20 through a linear head on ``model.frozen_backbone``, replayed: more than .5 point lower flags.

    ``frozen_backbone`` is an optional attribute, a module from images to features of any shape that training
    leaves as it is. The head is fitted to the samples' labels, clean and under noise of eps.
    """
    backbone = getattr(context.model, "frozen_backbone", None)
    if not isinstance(backbone, nn.Module):
        return not_applicable("The model has no frozen part (an attribute frozen_backbone).")
    substitute = CheckedModel(_fit(context, backbone), context.num_classes, per_sample=True)
    own = fraction(context.pgd())
    threat = context.threat("pgd", steps=20, restarts=2)
    replayed = fraction(context.survives(threat, model=substitute))
    value = 100 * (own - replayed)
    sentence = (
        f"Robust accuracy is {replayed:.1%} under an attack through the frozen part alone, {own:.1%} under "
        "one through the whole model."
    )
    return measured(
        value,
        POINTS,
        sentence,
        unit="points",
        arrays={"x": array([0.0, 1.0]), "robust accuracy": array([100 * own, 100 * replayed])},
        axes=("through the whole, through the frozen part", "percent"),
    )


def _fit(context: Context, backbone: nn.Module) -> nn.Module:
    """A head on `backbone` by Adam on the samples' labels, clean and with noise of eps."""
    generator = context.generator("backbone-transfer")
    noise = torch.rand(context.images.shape, generator=generator).to(context.images)
    images = torch.cat([context.images, (context.images + context.eps * (2 * noise - 1)).clamp(0, 1)])
    features, rows = _features(context, backbone, images)
    targets = torch.cat([context.labels, context.labels])[rows]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(context.generator("backbone-transfer", "head").initial_seed())
        head = nn.Linear(features.shape[1], context.num_classes).to(features)
        optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(head(features.detach()), targets).backward()
            optimiser.step()
    return _Head(backbone, head).eval()


@torch.no_grad()
def _features(context: Context, backbone: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (k, F) of those of `images` that have some, and their rows (k,)."""
    flat = nn.Sequential(backbone, nn.Flatten())
    width = flat(images[:1]).shape[1]
    asked = CheckedModel(flat.eval(), width, per_sample=True)
    features = torch.cat([asked(part) for part in images.split(context.batch_size)])
    rows = answered(features).nonzero().flatten()
    return features[rows], rows
