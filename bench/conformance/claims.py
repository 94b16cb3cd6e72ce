"""The claims of a model, measured on its own field in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..._errors import ContractBroken
from ...models import ODEBlock
from ...models.ode.lipschitz import MAX_ENUMERATED_STATE
from ...models.ode.solver import Field
from ..evaluation.dynamics import jacobians
from ..solvers.observe import count_nfe, observe

NUM_CLASSES = 10
"""Classes of the models that are checked."""
PAIRS = 512
"""States, or pairs of states, per layer and scale."""
JACOBIAN_ROWS = 4096
"""Most Jacobian rows per layer and scale: of a wide state fewer states are tried than `PAIRS`."""
SCALES = (0.01, 0.1, 1.0, 10.0)
"""Spread of the random states: within the linear part of tanh, and far outside it."""
GAINS = (1.0, 5.0)
"""Factors on all weights of a flow: a claim by construction holds at any weights."""


def _flow(model: nn.Module) -> ODEBlock:
    flow = getattr(model, "flow", None)
    if not isinstance(flow, ODEBlock):
        raise ContractBroken(
            "the claim is about a flow, but model.flow is not a robustode.ODEBlock: expose it"
        )
    return flow


def _states(width: int, count: int = PAIRS) -> Iterator[Tensor]:
    """Random states (width, count) at every scale, float64."""
    generator = torch.Generator().manual_seed(0)
    for scale in SCALES:
        yield scale * torch.randn(width, count, dtype=torch.float64, generator=generator)


def _layers(model: nn.Module, images: Tensor) -> Iterator[tuple[Field, nn.Module, int]]:
    """Every field of the flow, with its layer and its state dimension, at several sizes of the weights."""
    flow = _flow(model)
    states = next((call.state for call in observe(model, images.double()) if call.block is flow), None)
    if not isinstance(states, Tensor):
        raise ContractBroken("the claim is about model.flow, which a forward pass does not call")
    if states.ndim != 2:
        raise ContractBroken(
            f"the claim is about states that are columns (n, M), not of shape {tuple(states.shape)}"
        )
    original = {name: p.detach().clone() for name, p in flow.named_parameters()}
    try:
        for gain in GAINS:
            with torch.no_grad():
                for name, parameter in flow.named_parameters():
                    parameter.copy_(gain * original[name])
            for field, layer in zip(flow.fields(), flow.layers, strict=True):
                yield field, layer, len(states)
    finally:
        with torch.no_grad():
            for name, parameter in flow.named_parameters():
                parameter.copy_(original[name])


def check_fixed_step(model: nn.Module, images: Tensor) -> None:
    """The number of field evaluations is positive and the same for every input."""
    batches = (images, images[:1], torch.zeros_like(images), 1 - images)
    counts = [count_nfe(model, batch) for batch in batches]
    if None in counts or 0 in counts:
        raise ContractBroken(
            "no field evaluation is seen: solve through robustode.ODEBlock, torchdiffeq, torchdyn or "
            "torchode; a model without a flow leaves the claim out"
        )
    if len(set(counts)) > 1:
        raise ContractBroken(
            f"the number of field evaluations depends on the input: {sorted(set(counts), key=str)}"
        )


def check_contractive(model: nn.Module, images: Tensor) -> None:
    """mu_2 of the Jacobian is negative at every state, so the exact flow brings any two states closer.

    References
    ----------
    Zakwan, Xu, Ferrari-Trecate, arXiv 2203.11805, Definition 1; Soderlind, "The logarithmic norm",
    BIT Numerical Mathematics 46, 2006, eq. 1.5.
    """
    flow = _flow(model)
    forms = flow.tanh_forms() if flow.has_tanh_fields() else []
    if forms and max(len(form.B) for form in forms) <= MAX_ENUMERATED_STATE:
        # tanh' takes every value in (0, 1], so the vertices are the exact supremum.
        _refuse_growth(max(form.logarithmic_norm() for form in forms))
    for field, _, width in _layers(model, images):
        for states in _states(width, min(PAIRS, max(JACOBIAN_ROWS // width, 1))):
            jacobian = jacobians(field, states)
            _refuse_growth(float(torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2).amax()))


def _refuse_growth(rate: float) -> None:
    if not rate < 0:
        raise ContractBroken(f"two states can drift apart at rate {rate:.3g}: the flow is not contractive")


def check_hamiltonian(model: nn.Module, images: Tensor) -> None:
    """<grad H(x), f(x)> = 0: the exact flow conserves the energy that its layers report."""
    for field, layer, width in _layers(model, images):
        energy = getattr(layer, "energy", None)
        if not callable(energy):
            raise ContractBroken("a Hamiltonian layer reports its energy through a method energy(state)")
        for x in _states(width):
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(energy(x).sum(), x)
            derivative = field(x).detach()
            scale = gradient.norm(dim=0) * derivative.norm(dim=0)
            leak = float(((gradient * derivative).sum(0).abs() / scale.clamp_min(1e-300)).max())
            if leak > 1e-9:
                raise ContractBroken(
                    f"the energy changes along the field: |<grad H, f>| = {leak:.3g} |grad H| |f|"
                )


def states_tanh_fields(model: nn.Module) -> bool:
    """Whether the layers of the model's flow state the matrices of their fields."""
    flow = getattr(model, "flow", None)
    return isinstance(flow, ODEBlock) and flow.has_tanh_fields()


IN_FLOAT64 = frozenset({"contractive", "hamiltonian"})
"""The claims that are measured on the model in float64."""


def check_no_ode(model: nn.Module, images: Tensor) -> None:
    """No call of a solver is seen; steps that the model takes itself cannot be seen."""
    calls = observe(model, images)
    if calls:
        raise ContractBroken(f"a solver is called: {calls[0]}; leave the claim out")


CLAIM_CHECKS: Mapping[str, Callable[[nn.Module, Tensor], None]] = {
    "fixed_step": check_fixed_step,
    "contractive": check_contractive,
    "hamiltonian": check_hamiltonian,
    "no_ode": check_no_ode,
}
