"""Where a field is stated twice, by a ``forward`` and by matrices: do the two agree on real states?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..._errors import ContractBroken, RobustodeError, one_line
from .block import ode_blocks
from .spread import evenly_spread
from .statement import statement_of
from .tanh_field import TanhField

ROUNDINGS = 256
"""Differences of so many roundings of each term are not counted."""
GRADIENT_TOLERANCE = 1e-2
"""Relative to the largest entry; slopes of a saturated field lose digits."""
CALLS = 16
"""Calls of a layer in one forward pass that are compared, spread over all of them: its stage times."""
COLUMNS = 2048
"""States of a call that are compared, spread over all of them."""
SCALES = (1.0, -1.0, 0.03, 30.0)
"""Factors on real states: an attack moves states to where no image takes them."""
PERTURBATIONS = (0.1, 0.1)
"""Relative sizes of random changes to all trained parameters: forms may agree at an initialisation alone."""
_ADVICE = "write the field once, by its matrices (robustode.MatrixField) or by forward"

_Call = tuple[Tensor, Mapping[str, Any]]


def check_field_agreement(model: nn.Module, ask: Callable[[], object], *, of: str) -> None:
    """Compare the two statements of every layer of `model` that states its field twice.

    The states are those that real images reach inside the model's ODE blocks by the written ``forward``, at
    the solver's stage times. Values are compared there, at multiples of these states, one state alone, in
    training and in eval mode and at changed parameters; gradients to the state and to the parameters as they
    are. The model is left as it was; torch's random state is used.

    Parameters
    ----------
    model
        In eval mode.
    ask
        One forward pass of `model`.
    of
        What the images are, for the error message.

    Raises
    ------
    ContractBroken
        When the two differ by more than rounding.
    """
    layers = [layer for block in ode_blocks(model) for layer in block.layers if statement_of(layer) == "both"]
    if not layers:
        return
    with _unchanged(model):
        calls = _calls(layers, ask)
        for layer in dict.fromkeys(layers):
            try:
                _compare(model, layer, calls.get(layer, []), of)
            except RobustodeError:
                raise
            except Exception as error:
                raise ContractBroken(
                    "the field's forward and its stated matrices cannot be compared "
                    f"({type(error).__name__}: {one_line(error, 40)}): {_ADVICE}"
                ) from error


def _calls(layers: list[nn.Module], ask: Callable[[], object]) -> dict[nn.Module, list[_Call]]:
    """The states (n, M) and shared tensors with which one forward pass calls each layer."""
    seen: dict[nn.Module, list[_Call]] = defaultdict(list)

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], shared: dict[str, Any]) -> None:
        seen[layer].append((inputs[0].detach(), shared))

    # A layer with a hook is called as it is, never by its matrices.
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in dict.fromkeys(layers)]
    try:
        with torch.no_grad():
            ask()
    finally:
        for handle in handles:
            handle.remove()
    return {layer: [calls[i] for i in evenly_spread(len(calls), CALLS)] for layer, calls in seen.items()}


def _compare(model: nn.Module, layer: Any, calls: list[_Call], of: str) -> None:
    for state, shared in calls:
        picked = state[:, evenly_spread(state.shape[1], COLUMNS)] if state.ndim == 2 else state
        tried = [scale * picked for scale in SCALES] + [picked[:, :1], picked.flip(-1)]
        for training in (False, True):
            layer.train(training)
            for states in tried:
                _compare_values(layer, states, shared, of)
        layer.eval()
        _compare_gradients(layer, picked, shared)
        for size in PERTURBATIONS:
            with _perturbed(model, size):
                _compare_values(layer, picked, {k: _changed(v, size) for k, v in shared.items()}, of)


@torch.no_grad()
def _compare_values(layer: Any, states: Tensor, shared: Mapping[str, Any], of: str) -> None:
    stated, written = layer.tanh_field(**shared), layer(states.clone(), **shared)
    if written.shape != states.shape:
        raise ContractBroken(f"the field maps a state {tuple(states.shape)} to {tuple(written.shape)}")
    if not isinstance(stated, TanhField):
        raise ContractBroken(f"tanh_field returned {type(stated).__name__}: return a robustode.TanhField")
    values = stated(states)
    apart = (written - values).abs()
    allowed = _rounding(stated, states)
    finite = values.isfinite().all(0) & allowed.isfinite()
    if bool((written.isfinite().all(0) == finite).all()) and bool((apart <= allowed).all(0)[finite].all()):
        return
    size = written[:, finite].abs().amax().clamp_min(torch.finfo(states.dtype).tiny) if finite.any() else 1
    largest = float((apart[:, finite].amax() / size) if finite.any() else torch.inf)
    raise ContractBroken(
        f"the field's forward and its stated matrices differ by {largest:.2g} of their size on states of "
        f"{of}: {_ADVICE}"
    )


def _rounding(field: TanhField, states: Tensor) -> Tensor:
    """What rounding may change in the derivative at each of `states` (n, M), shape (M,)."""
    unit = ROUNDINGS * torch.finfo(states.dtype).eps
    argument = torch.addmm(field.b, field.B, states)
    reach = unit * (field.B.abs() @ states.abs() + field.b.abs())
    activated = (
        torch.tanh(argument + reach) - torch.tanh(argument - reach) + unit * torch.tanh(argument).abs()
    )
    total = field.dense_A().abs() @ activated + unit * (field.dense_C().abs() @ states.abs())
    return total.amax(0) + torch.finfo(states.dtype).tiny


def _compare_gradients(layer: Any, states: Tensor, shared: Mapping[str, Any]) -> None:
    """Compare gradients of a random combination of the derivatives: to the state and to each parameter."""
    named = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    weights = torch.randn_like(states)

    def gradients(field: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = states.clone().requires_grad_(True)
        total = (field(x) * weights).sum()
        wanted = [x, *named.values()]
        if not total.requires_grad:
            return [torch.zeros_like(t) for t in wanted]
        found = torch.autograd.grad(total, wanted, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted, strict=True)]

    with torch.enable_grad():
        written = gradients(lambda x: layer(x, **shared))
        stated = gradients(lambda x: layer.tanh_field(**shared)(x))
    for name, one, other in zip(("the state", *named), written, stated, strict=True):
        apart, size = float((one - other).abs().amax()), float(torch.maximum(one.abs(), other.abs()).amax())
        if apart > GRADIENT_TOLERANCE * size:
            raise ContractBroken(
                f"the gradients to {name} of the field's forward and of its stated matrices differ by "
                f"{apart / size:.2g} of their size: {_ADVICE}"
            )


@contextmanager
def _perturbed(model: nn.Module, size: float) -> Iterator[None]:
    """Change every trained parameter at random, and put all of them back."""
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    with torch.no_grad():
        try:
            for parameter in trained:
                parameter.copy_(_changed(parameter, size))
            yield
        finally:
            for parameter, values in zip(trained, before, strict=True):
                parameter.copy_(values)


def _changed(value: Any, size: float) -> Any:
    """A tensor with noise of `size` times its root mean square, or of `size` where it is all zero."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    scale = value.detach().square().mean().sqrt()
    return value.detach() + size * torch.where(scale > 0, scale, 1.0) * torch.randn_like(value)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put back modes, buffers and counts of field evaluations."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    counts = [(block, block.nfe) for block in ode_blocks(model)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)
        for module, mode in modes:
            module.training = mode
        for block, nfe in counts:
            block.nfe = nfe
