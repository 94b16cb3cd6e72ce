"""Does the attack find an adversarial example that is known to exist?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....attacks.core.losses import answered, misclassified
from ....attacks.core.sample_answers import SampleAnswers
from ....attacks.core.seeds import Purpose, stream_seeds
from ...evaluation.accuracy import frozen
from ..context import Context
from ..measures import array
from ..registry import AuditResult, measured, not_applicable, register_audit

SAMPLES, INNER = 16, 64
RANDOM = (20, 100)
"""Fewest and most queries of random search; between these as many as the attack makes."""
LIMIT, EASY = 0.95, 0.75
INSIDE = 0.6
"""Radius of the points of the original class, as a fraction of eps."""
NEAR = 0.95
"""Where the decision boundary lies between these points (0) and the planted example (1)."""


class _Binary(nn.Module):
    """Logits (N, 2) of a binary classifier: is the image beyond the plane before its planted example?

    Margins are scaled to -1 at the unperturbed image, so that the loss is not flat.
    """

    def __init__(self, model: nn.Module, normal: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.model, self.normal, self.offset = model, normal, offset

    def forward(self, images: Tensor) -> Tensor:
        score = self.model(images).to(self.normal) @ self.normal - self.offset
        return torch.stack([-score / 2, score / 2], 1).to(images)


@register_audit(
    "binarisation",
    title="the attack finds an example that was planted",
    needs="model",
    cost="16 images one by one: 65 forward passes, random search and the attack under test",
    reference="Zimmermann, Brendel, Tramer, Carlini, NeurIPS 2022, arXiv 2206.13991",
    version=2,
)
def check(context: Context) -> AuditResult:
    """Share of planted examples that the attack finds: below .95 flags.

    For each image a linear readout of the logits separates one point on the border of its ball from points
    well inside it. The attack is the strongest stored gradient attack of the audit's norm and eps, as it was
    configured. A single miss never flags. The audit does not apply where random search finds more than three
    quarters of them.
    """
    threat = context.attack_under_test()
    images = context.images[:SAMPLES]
    queries = min(max(threat.queries(threat.parameters)[0], RANDOM[0]), RANDOM[1])
    found, lucky, tried = 0, 0.0, 0
    with frozen(context.model):
        for index, image in zip(context.numbers, images, strict=False):
            readout = _plant(context, image, index)
            if readout is None:
                continue
            tried += 1
            seeds = stream_seeds(Purpose.AUDIT, context.seed, 0, [index])
            label = torch.zeros(1, dtype=torch.long, device=image.device)
            asked = SampleAnswers(readout, 2, per_sample=True)
            with torch.set_grad_enabled(threat.needs_gradient):
                attacked = threat(asked, image[None].clone(), label, context.eps, seeds)
            with torch.no_grad():
                found += int(misclassified(asked(attacked), label))
                tries = _border(context, image, queries, ("random search", index))
                lucky += float(misclassified(asked(tries), label).any())
    if not tried:
        return not_applicable(
            "No planted example can be separated from the points inside: the logits do not change."
        )
    value, chance = found / tried, lucky / tried
    weak = value < LIMIT and tried - found > 1
    if chance > EASY and value >= LIMIT:
        return not_applicable(
            f"Random search finds {chance:.0%} of the planted examples: the test is too easy."
        )
    sentence = (
        f"{threat.name} ({_settings(threat.parameters)}) finds {value:.0%} of {tried} planted examples, "
        f"random search of {queries} queries {chance:.0%}"
    )
    sentence += ": the attack is too weak for its robust accuracy to be reliable." if weak else "."
    return measured(
        value,
        LIMIT,
        sentence,
        flagged=weak,
        unit="share",
        arrays={"x": array([0.0, 1.0]), "found": array([100 * chance, 100 * value])},
        axes=("random search, the attack", "planted examples found (%)"),
    )


def _settings(parameters: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in dict(parameters).items()) or "no settings"  # type: ignore[call-overload]


def _border(context: Context, image: Tensor, count: int, what: tuple[str, int], reach: float = 1.0) -> Tensor:
    """Random points (count, C, H, W) on the border of the ball of `reach` eps, within the box."""
    generator = context.generator("binarisation", *what)
    noise = torch.randn(count, *image.shape, generator=generator).to(image)
    if context.norm == "linf":
        noise = noise.sign()
    else:
        noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (image + reach * context.eps * noise).clamp(0, 1)


@torch.no_grad()
def _plant(context: Context, image: Tensor, index: int) -> _Binary | None:
    """The readout of one image; None where its planted example cannot be separated."""
    inner = torch.cat([image[None], _border(context, image, INNER, ("inside", index), INSIDE)])
    planted = _border(context, image, 1, ("planted", index))
    inside, outside = context.logits(inner).double(), context.logits(planted).double()[0]
    known = answered(inside)
    if not known[0] or not outside.isfinite().all():
        return None
    inside = inside[known]
    size = inside.abs().amax().clamp_min(1e-300)
    inside, outside = inside / size, outside / size
    centred = inside - inside.mean(0)
    covariance = centred.T @ centred / len(inside)
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
    if not bool(covariance.diagonal().sum() > 0):
        return None
    normal = torch.linalg.solve(covariance + ridge, outside - inside.mean(0))
    scores, goal = inside @ normal, outside @ normal
    if not goal > scores.max() + 1e-9 * goal.abs():
        return None
    offset = scores.max() + NEAR * (goal - scores.max())
    lead = offset - scores[0]
    return _Binary(context.queried, normal / (size * lead), offset / lead)
