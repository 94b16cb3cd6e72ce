"""Training with seeds, selection on held-out training samples, and resumption at every epoch.

The order of samples and every random number follow from (seed, epoch), so a training that was killed
and resumed on the same number of threads ends with the same bytes as one that ran through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._errors import ContractBroken, NonFinite
from ...attacks.core.losses import answered
from ...attacks.core.model_call import ask_model, call_model
from ...attacks.core.modes import set_mode, training_mode
from ...attacks.core.torch_settings import KeptSettings
from ...models import Normalise
from ..config.perturbation import Perturber
from ..config.preset import Recipe
from ..data import Data, Split
from ..records.checkpoint import Checkpoint, load_state, save_checkpoint
from ..runtime.checked_model import CheckedModel
from ..runtime.construct import construct
from ..runtime.foreign_code import running
from ..runtime.opened_files import FilesRead
from .partial_training import History, PartialTraining

_SEED_STRIDE = 1_000_003
"""Distance of torch's seeds of two training seeds; epochs lie between."""
FINITE_CHECK_INTERVAL = 50
"""Batches between two checks on a GPU that the loss is finite; each check synchronises with the GPU."""


def build_model(
    build: Callable[..., nn.Module],
    data: Data,
    hyperparameters: Mapping[str, Any],
    seed: int,
    *,
    to_be_trained: bool = True,
) -> nn.Module:
    """Build an untrained model from `seed` and test it on two images; the caller's random state is unchanged.

    Raises
    ------
    ModelFailure
        When it cannot be built, is not a module, returns no logits, has a state that no checkpoint can hold,
        or, where it is `to_be_trained`, no parameters to train.
    """
    images = data.train.images[:2].cpu().clone()
    model = construct(build, data.input_shape, data.num_classes, hyperparameters, seed=seed, images=images)
    if to_be_trained and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ContractBroken("the model has no parameters to train")
    require_storable(model)
    return model


def require_storable(model: nn.Module) -> None:
    """Raise `ContractBroken` where a checkpoint, which holds plain tensors alone, cannot hold its state."""
    with training_mode(model):
        state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
            what = type(value).__name__ if not isinstance(value, Tensor) else "a sparse or quantised tensor"
            raise ContractBroken(
                f"the model's state holds {what} under {name}, and a checkpoint holds plain tensors alone: "
                "keep it in a buffer, or as an argument of the factory"
            )


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    seed: int,
    path: Path,
    facts: Mapping[str, Any],
    device: torch.device,
    resume: bool = True,
    files: FilesRead | None = None,
    on_epoch: Callable[[int, float], None] = lambda done, seconds: None,
    on_batch: Callable[[int], None] = lambda samples: None,
) -> tuple[Checkpoint, History]:
    """Train `model` in place, leave it in eval mode with the selected weights, and write its checkpoint.

    Parameters
    ----------
    path
        Of the checkpoint. The file `partial_path` beside it holds the state after each epoch, and is left to
        the caller, who removes it when the training is recorded.
    facts
        What the checkpoint's facts begin with; only a partial state of the same ``facts["cell"]`` is resumed.
    resume
        Whether to resume from a partial state, if there is one.
    files
        What the model's code reads: a partial state is resumed only while that has not changed.
    on_epoch
        Called after each epoch with how many are done and the seconds of the last.
    on_batch
        Called with the number of samples after each training batch.

    Raises
    ------
    NonFinite
        When the loss is not finite: the training diverged.
    """
    model.to(device)
    set_mode(model, training=True)  # weights are those of training mode: evaluation may merge or fuse them
    fit_normalisation(model, data)
    perturb = Perturber(model, recipe.perturb, seed, data.num_classes) if recipe.perturb else None
    optimiser = torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    partial = PartialTraining(path, facts, files)
    if not resume:
        partial.remove()
    history, best = partial.load(model, optimiser)
    done = len(history.train_loss)
    on_batch(done * len(data.train))
    for epoch in range(done, recipe.epochs):
        began = time.perf_counter()
        with running(model, seed * _SEED_STRIDE + epoch + 1):
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * recipe.decay**epoch
            loss = _train_epoch(
                model, data.train, optimiser, recipe, epoch, device, on_batch, data.num_classes, perturb
            )
            validation_loss, validation_accuracy = score(
                model, data.validation, recipe.batch_size, device, data.num_classes, perturb
            )
            history.train_loss.append(loss)
            history.validation_loss.append(validation_loss)
            history.validation_accuracy.append(validation_accuracy)
            set_mode(model, training=True)
            if history.selected(recipe.select) == epoch:
                best = {name: t.detach().clone() for name, t in model.state_dict().items()}
        history.seconds.append(time.perf_counter() - began)
        partial.save(model, optimiser, history, best)
        on_epoch(epoch + 1, history.seconds[-1])
    load_state(model, best, path)
    checkpoint = save_checkpoint(
        path,
        model,
        {**facts, "history": vars(history), "selected_epoch": history.selected(recipe.select) + 1},
    )
    set_mode(model, training=False)
    return checkpoint, history


def fit_normalisation(model: nn.Module, data: Data) -> None:
    """Set every `Normalise` inside `model` to the mean and standard deviation of the training images."""
    for module in model.modules():
        if isinstance(module, Normalise):
            module.fit(data.train.images)


def _train_epoch(
    model: nn.Module,
    split: Split,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    epoch: int,
    device: torch.device,
    on_batch: Callable[[int], None],
    num_classes: int,
    perturb: Perturber | None,
) -> float:
    set_mode(model, training=True)
    order = torch.randperm(len(split)).to(split.images.device)
    losses: list[Tensor] = []
    every = 1 if device.type == "cpu" else FINITE_CHECK_INTERVAL
    batches = training_batches(order, recipe.batch_size)
    for rows in batches:
        images, labels = split.images[rows].to(device), split.labels[rows].to(device)
        if perturb:
            images = perturb(images, labels, split.indices[rows.cpu()], epoch)
        losses.append(training_step(model, images, labels, optimiser, num_classes))
        if len(losses) % every == 0:
            _check_finite(losses[-every:], epoch)
        on_batch(len(rows))
    _check_finite(losses, epoch)
    sizes = torch.tensor([len(rows) for rows in batches], dtype=torch.float64)
    if left_out := len(split) - int(sizes.sum()):
        on_batch(left_out)
    return float(torch.stack(losses).cpu().double() @ sizes) / float(sizes.sum())


def training_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """`order` (N,) in batches of `batch_size`, without a last one of one sample.

    Batch normalisation has no variance of a single sample. In each epoch it is another one that is left out.
    """
    batches = list(order.split(batch_size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 < batch_size else batches


def _check_finite(losses: list[Tensor], epoch: int) -> None:
    loss = float(torch.stack(losses).sum())
    if not math.isfinite(loss):
        raise NonFinite(
            f"training diverged in epoch {epoch + 1}: the loss is {loss}; lower the learning rate"
        )


def training_loss(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """``model.loss(logits, labels)``, or cross-entropy, plus ``model.penalty()``, if there is one."""
    criterion, penalty = getattr(model, "loss", None), getattr(model, "penalty", None)
    loss: Tensor = criterion(logits, labels) if callable(criterion) else F.cross_entropy(logits, labels)
    return loss + penalty() if callable(penalty) else loss


def training_step(
    model: nn.Module, images: Tensor, labels: Tensor, optimiser: torch.optim.Optimizer, num_classes: int
) -> Tensor:
    """One step on ``model.loss(logits, labels)`` plus ``model.penalty()``, then ``model.after_step()``.

    All three methods are optional; without the first the loss is cross-entropy. Returns the loss, a scalar
    detached, and not yet synchronised with a GPU.
    """
    optimiser.zero_grad(set_to_none=True)
    ask = call_model if images.device.type == "cpu" else ask_model  # no synchronisation with a GPU
    logits = ask(model, images, num_classes)
    with KeptSettings(model):
        loss = training_loss(model, logits, labels)
        loss.backward()
    optimiser.step()
    after_step = getattr(model, "after_step", None)
    if callable(after_step):
        with KeptSettings(model):
            after_step()
    return loss.detach().reshape(())


@torch.no_grad()
def score(
    model: nn.Module,
    split: Split,
    batch_size: int,
    device: torch.device,
    num_classes: int,
    perturb: Perturber | None = None,
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy on `split`, in eval mode, with images changed by `perturb`.

    A sample without an answer is not classified correctly, and the mean is over the others.
    """
    set_mode(model, training=False)
    deferred, asked = device.type != "cpu", 0
    queried = CheckedModel(model, num_classes, deferred=deferred, per_sample=True)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for rows in torch.arange(len(split)).split(batch_size):
        images, target = split.images[rows].to(device), split.labels[rows].to(device)
        if perturb:
            images = perturb(images, target, split.indices[rows])
        logits = queried(images)
        if not deferred:
            known = answered(logits)
            logits, target = logits[known], target[known]
        asked += len(logits)
        loss += F.cross_entropy(logits, target, reduction="sum")
        correct += (logits.argmax(1) == target).sum()
    queried.raise_pending()
    return float(loss) / max(asked, 1), int(correct) / len(split)
