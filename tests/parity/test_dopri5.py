"""Our dopri5 against torchdiffeq's on a trained flow: states, gradients and robust accuracy."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from robustode.attacks import THREATS
from robustode.models import MODELS
from torch import Tensor, nn

LIMIT = 1e-5
"""Largest error of states and gradients, as a share of their largest entry."""


class Torchdiffeq(nn.Module):
    """The layers of a flow, each solved by `torchdiffeq.odeint` over its part of the time."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.layers, self.final_time, self.solver = flow.layers, flow.final_time, flow.solver

    def forward(self, state: Tensor) -> Tensor:
        span = torch.tensor([0.0, self.final_time / len(self.layers)], dtype=state.dtype)
        for layer in self.layers:
            state = torchdiffeq.odeint(
                lambda _, x, layer=layer: layer(x),
                state,
                span,
                method="dopri5",
                rtol=self.solver.rtol,
                atol=self.solver.atol,
            )[-1]
        return state


@pytest.fixture(scope="module")
def both(trained, digits) -> tuple[nn.Module, nn.Module]:
    """The trained weights in a model whose flow is solved by our dopri5, and by torchdiffeq's."""
    spec = MODELS.get("node-dopri5")
    models = []
    for _ in range(2):
        model = spec.build(digits.input_shape, digits.num_classes, **spec.resolve({})).eval()
        model.load_state_dict(trained.state_dict())
        models.append(model.requires_grad_(False))
    ours, theirs = models
    theirs.flow = Torchdiffeq(ours.flow)
    return ours, theirs


def assert_close(found: Tensor, wanted: Tensor, name: str) -> None:
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert error <= LIMIT, f"{name} differ by {error:.1e} of the largest"


def test_states_and_gradients_agree(both, attacked):
    answers = []
    for model in both:
        model.requires_grad_(True)
        images = attacked.images.clone().requires_grad_(True)
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, attacked.labels)
        parameters = dict(model.named_parameters())
        wanted = {"images": images, **{n: p for n, p in parameters.items() if p.requires_grad}}
        gradients = torch.autograd.grad(loss, list(wanted.values()))
        model.requires_grad_(False)
        answers.append({"logits": logits.detach(), **dict(zip(wanted, gradients, strict=True))})
    ours, theirs = answers
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(ours[name], value, name)


@pytest.mark.parametrize(("name", "eps"), [("pgd-linf", 0.1), ("pgd-l2", 0.6)])
def test_robust_accuracy_agrees(both, attacked, name, eps):
    threat = THREATS.get(name).configure(steps=10, restarts=1)
    images, labels = attacked.images[:50], attacked.labels[:50]
    ours, theirs = (
        float((model(threat(model, images.clone(), labels, eps, 0)).argmax(1) == labels).double().mean())
        for model in both
    )
    assert abs(ours - theirs) <= 1 / 50
    assert 0.05 < ours < 0.95
