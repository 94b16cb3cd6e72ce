"""One call of a model, held to its contract: floating-point logits (N, K), the input left as it is."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn

from ..._errors import ContractBroken, ModelFailure, NonFinite, RobustodeError, one_line
from .image_dtype import call_in_its_dtype
from .memory import out_of_memory
from .torch_settings import KeptSettings

NO_GRAPH = "does not require grad"
"""How torch says that forward asks for a derivative where none is recorded."""


def ask_model(model: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Return the model's logits (N, K) of `images` (N, C, H, W); their values are not checked.

    The images are handed over in the floating type that the model takes, see `call_in_its_dtype`. What it
    changes of torch's settings is put back (`KeptSettings`). Logits without a graph are a copy, which a model
    that returns its own buffer does not overwrite. A GPU is not waited for.

    Raises
    ------
    ModelFailure
        The model raised.
    ContractBroken
        It returned something that is not a floating (N, K) tensor, or changed its input in place.
    """
    try:
        with KeptSettings(model):
            logits = call_in_its_dtype(model, images)
    except (RobustodeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        advice = ": differentiate inside torch.enable_grad()" if NO_GRAPH in str(error) else ""
        raise ModelFailure(
            f"the model raised {type(error).__name__}: {one_line(error)}{where(error)}{advice}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ContractBroken(
            f"the model returned {type(logits).__name__}, not a tensor of logits: return the logits alone"
        )
    flat = logits.numel() == len(images) * num_classes
    if logits.shape != (len(images), num_classes):
        raise ContractBroken(
            f"the model returned shape {tuple(logits.shape)} for {len(images)} images, "
            f"not ({len(images)}, {num_classes})" + (": flatten them" if flat else "")
        )
    if not logits.is_floating_point():
        raise ContractBroken(f"the model returned {logits.dtype}, not floating-point logits")
    return logits if torch.is_grad_enabled() and logits.requires_grad else logits.detach().clone()


def call_model(model: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Return what `ask_model` does, or raise `NonFinite` when these logits hold NaN or infinity."""
    logits = ask_model(model, images, num_classes)
    raise_nonfinite(logits.isfinite().all(1), "logits are")
    return logits


def raise_nonfinite(finite: Tensor, what: str) -> None:
    """Raise `NonFinite` unless all of `finite`, bool (N,), is true; `what` is such as "logits are"."""
    if not bool(finite.all()):
        raise NonFinite(f"{what} NaN or infinite for {int((~finite).sum())} of {len(finite)} samples")


def where(error: BaseException) -> str:
    """The innermost line of the model's own code, as `` (mine.py:12)``; empty when there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[2]
    library = sysconfig.get_path("stdlib")
    outside = ("site-packages", library, str(package / "bench"), str(package / "attacks"))
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith("<") and not any(part in frame.filename for part in outside)
    ]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
