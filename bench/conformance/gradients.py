"""Do gradients reach the input and every parameter that matters?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..._errors import ContractBroken, NonFinite
from ...attacks.core.model_call import ask_model, call_model
from ...attacks.core.modes import set_mode
from ..training.train import training_loss

SHOWN = 3
"""Most parameters that one line names."""


def check_gradients_of(model: nn.Module, images: Tensor, num_classes: int) -> str | None:
    """Finite gradients of the training loss to the input, not all zero, and to each parameter that matters.

    Returns
    -------
    str or None
        A warning that names trainable parameters without a gradient that change no logits.

    Raises
    ------
    ContractBroken, NonFinite
        A gradient is missing or not finite.
    """
    set_mode(model, training=True)
    images = images.clone().requires_grad_(True)
    logits = call_model(model, images, num_classes)
    if not logits.requires_grad:
        raise ContractBroken(
            "the logits carry no gradient: do not detach or convert to numpy in forward, nor run it without "
            "gradients"
        )
    training_loss(model, logits, torch.arange(len(images)) % num_classes).backward()
    if images.grad is None or not bool(images.grad.any()):
        raise ContractBroken("no gradient reaches the input: do not detach, round or threshold it in forward")
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, tensor in [("the input", images), *trained]:
        if tensor.grad is not None and not bool(tensor.grad.to_dense().isfinite().all()):
            raise NonFinite(f"the gradient of {name} is NaN or infinite at initialisation")
    missing = [(name, parameter) for name, parameter in trained if parameter.grad is None]
    set_mode(model, training=False)
    plain = images.detach()
    idle = [name for name, parameter in missing if not _matters(model, parameter, plain, num_classes)]
    blind = [name for name, _ in missing if name not in idle]
    if blind:
        raise ContractBroken(
            f"no gradient reaches {_listed(blind)}, on which the logits depend: do not detach it in forward; "
            "torch.autograd.grad inside forward needs create_graph=True"
        )
    if idle:
        advice = "use it in forward, or do not register it"
        return f"{_listed(idle)} changes no logits and is not trained: {advice}"
    return None if trained else "no parameter is trainable: `robustode run` needs --weights"


@torch.no_grad()
def _matters(model: nn.Module, parameter: Tensor, images: Tensor, num_classes: int) -> bool:
    """Whether the logits change, or are not finite, when `parameter` is moved at random, twice."""
    before = call_model(model, images, num_classes)
    kept = parameter.detach().clone()
    generator = torch.Generator().manual_seed(0)
    try:
        for _ in range(2):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(kept + (kept.abs().amax() + 1) * noise if kept.numel() else kept)
            after = ask_model(model, images, num_classes)
            if not torch.allclose(after, before, rtol=1e-5, atol=1e-6 * float(before.abs().max())):
                return True
    finally:
        parameter.copy_(kept)
    return False


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    shown = ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"parameter {shown}" if len(names) == 1 else f"each of the parameters {shown}"
