"""The Python interface: evaluate a module; `load_model` loads one that a run has trained."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._arguments import Count, Flag, Names, Whole
from .._errors import InvalidArgument, ModelFailure, one_line
from .._registry import check_name
from ..attacks import THREATS
from ..attacks.core.image_dtype import call_in_its_dtype
from ..attacks.core.model_call import call_model
from .audits.library import check_names
from .config.attack_grid import attack_norm
from .config.own_datasets import data_to_test, is_name
from .config.pretrained import PRETRAINED_RECIPE
from .config.threat_strengths import DEFAULT_STRENGTHS, threat_and_strength
from .data import DATASETS, Data, load_data
from .evaluation.accuracy import evaluate_cell, frozen
from .evaluation.solver_transfer import evaluate_solver_transfer
from .records.record import Cell
from .report.statistics import summarise
from .runner.first_questions import first_warnings
from .runtime.device import module_device
from .runtime.foreign_code import asking, independent_of_caller
from .runtime.progress import Quiet, Reporter, reporter_for_call
from .runtime.put_back import change_tensors, put_back
from .training.check_statements import FEW_IMAGES, check_statements
from .training.provenance import environment_of, summary_line
from .training.stored_model import load_model

__all__ = ["DEFAULT_STRENGTHS", "evaluate", "load_model"]


@independent_of_caller
def evaluate(
    module: nn.Module,
    *,
    dataset: Any = "digits",
    threats: str | Sequence[Any] = ("clean", "gaussian", "pgd-linf"),
    samples: Count | None = None,
    draws: Count = 1,
    batch_size: Count = 100,
    seed: Whole = 0,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
    name: str = "module",
    expected_failures: Names = (),
    progress: Flag | None = None,
) -> pd.DataFrame:
    """Measure the accuracy of a trained module under noise and attacks; nothing is stored.

    Before the first number a few held-out samples are asked in several ways: again, with gradients, alone, in
    another order and in other batches.

    Parameters
    ----------
    module
        Maps images in [0, 1], shape (N, C, H, W), to logits, shape (N, K). It is asked in eval mode, set by
        its own ``eval()``. Its mode, parameters, gradients and device are left unchanged, and so is
        everything global, such as random states. What the caller has set, such as ``torch.inference_mode()``
        or a default dtype, changes no number.
    dataset
        Name of a dataset whose test set is used, see ``robustode list datasets``; or images of your own: a
        ``TensorDataset`` or a pair (images, labels) in [0, 1], or in whole numbers up to 255, of shape
        (N, C, H, W), (N, H, W, C) or (N, H, W); or a folder that holds a folder of images for each class.
    threats
        Names of threats, pairs (name, strength), or (name, strength, parameters) with a dictionary of
        parameters; see ``robustode list threats``. ``torchattacks:MIFGSM`` is an attack of another library.
        Strengths are in pixel units: the radius of the norm ball, or the standard deviation of noise. A name
        alone uses the strength in `robustode.bench.api.DEFAULT_STRENGTHS`.
    samples
        Number of test samples, the first ones of the test set; all by default.
    draws
        Number of repetitions of a random threat.
    batch_size
        Number of samples in one forward pass.
    seed
        Seed of noise and attacks.
    device
        Where to compute; by default where the module lies. It is moved for the call, and then put back.
    data_root
        Folder of the datasets; by default ``$ROBUSTODE_DATA`` or ``~/.cache/robustode``.
    name
        Name of the module in the table.
    expected_failures
        Of the audits ``determinism`` and ``batch-independence``, those that the module is known to fail: no
        warning is given of them.
    progress
        Whether to show progress; by default on a terminal and in a notebook.

    Returns
    -------
    pandas.DataFrame
        One row per number, with the columns of ``summary.csv``: ``dataset, protocol, model, recipe, threat,
        norm, strength, statistic, value, low, high, samples, seeds``. Statistics are ``accuracy`` under each
        threat, a fraction in [0, 1], ``nfe``, the number of field evaluations of a forward pass, and, where
        ``clean`` is among the threats, the accuracy under the threat ``worst-case`` of each attacked norm.
        Where the module gives no finite answer for some samples, ``no_answer`` is their share: they count
        as misclassified.
        `low` and `high` are the 95% Wilson interval of an accuracy.

    Raises
    ------
    UnknownName, InvalidArgument
        For names, strengths and modules that cannot be used, before anything is computed.
    DataUnavailable
        When the dataset is neither stored nor downloadable.
    ModelFailure, NonFinite, BudgetViolation
        When the module raises by its code, gives no finite logits for any sample of its first batch or states
        its field twice and differently, or an attack exceeds its norm ball.

    Warns
    -----
    ForeignCodeWarning
        When the module changes something global, which is put back.
    InconsistentModelWarning
        When the module answers the same image differently from pass to pass, or by its batch.
    UntrainedModelWarning
        When it is no better on held-out samples than always answering with the largest class.

    Examples
    --------
    >>> from torch import nn
    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> table = evaluate(module, threats=["clean", ("pgd-linf", 0.05)], samples=10)
    >>> sorted(set(table["threat"]))
    ['clean', 'pgd-linf', 'worst-case']
    """
    _require_initialised(module)
    check_name(name, "model")
    registered = is_name(dataset)
    if registered:
        DATASETS.get(cast(str, dataset))
    check_names(expected_failures)
    asked = [threat_and_strength(item) for item in ([threats] if isinstance(threats, str) else threats)]
    chosen = {(threat.name, strength): (threat, strength) for threat, strength in asked}
    for threat, strength in asked:
        if threat.parameters != chosen[threat.name, strength][0].parameters:
            raise InvalidArgument(f"{threat.name} at {strength:g}: ask for it in two ways in two calls")
    if not chosen:
        raise InvalidArgument("threats names no threat: see `robustode list threats`")
    place = _pick_device(module, device)
    if registered:
        data = load_data(cast(str, dataset), Path(data_root) if data_root else None)
    else:
        data = data_to_test(dataset)
    count = samples or len(data.test)
    if count > len(data.test):
        raise InvalidArgument(f"{data.name} has {len(data.test)} test samples, not {samples}")
    cells = [
        Cell(
            kind="accuracy",
            dataset=data.name,
            index_sha256=data.index_sha256,
            model=name,
            model_version="0",
            recipe={"name": PRETRAINED_RECIPE},
            threat=threat.name,
            threat_version=threat.version,
            family=threat.family,
            norm=attack_norm(threat),
            protocol=threat.protocol,
            parameters=dict(threat.parameters),
            strength=strength,
            draws=draws if threat.stochastic else 1,
            attack_seed=seed,
            samples=count,
            batch_size=batch_size,
        )
        for threat, strength in chosen.values()
    ]
    records = []
    with reporter_for_call(progress) as reporter, _usable_at(module, place):
        if not registered:
            data = dataclasses.replace(data, num_classes=_count_classes(module, data, place))
        check_statements(module, data.train.images[:FEW_IMAGES].to(place))
        for category, sentence in first_warnings(
            module, data, batch_size=batch_size, device=place, expected=expected_failures
        ):
            warnings.warn(f"{name}: {sentence}", category, stacklevel=3)
        pace = 0.0 if isinstance(reporter, Quiet) else _seconds_per_sample(module, data, batch_size, place)
        reporter.start(pace * sum(_passes(cell) for cell in cells))
        for cell, (threat, _) in zip(cells, chosen.values(), strict=True):
            cost = pace * _passes(cell) / (cell.samples * cell.draws)
            reporter.activity(f"{cell.threat} {cell.strength:g}")
            how = evaluate_cell if threat.crafted_on == "model" else evaluate_solver_transfer
            record = how(
                cell,
                module,
                data.test,
                threat,
                num_classes=data.num_classes,
                device=place,
                environment=environment_of(module, place),
                on_samples=partial(_advance, reporter, cost),
            )
            records.append(record)
            reporter.line(f"{name} · {cell.threat}: {summary_line([record])}")
    return summarise(records)


@contextmanager
def _usable_at(module: nn.Module, place: torch.device) -> Iterator[None]:
    """Move `module` to `place` for a block, with tensors that take part in gradients; then put it back."""
    made_in_inference_mode = any(t.is_inference() for t in (*module.parameters(), *module.buffers()))
    if place == module_device(module) and not made_in_inference_mode:
        yield
        return
    with put_back(module):
        if made_in_inference_mode:
            change_tensors(module, torch.clone)
        module.to(place)
        yield


def _require_initialised(module: nn.Module) -> None:
    """Raise `InvalidArgument` where a lazy layer has no weights yet."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise InvalidArgument(
            f"module is not initialised yet ({lazy[0]} has no shape): call it once on images, then train it"
        )


def _count_classes(module: nn.Module, data: Data, device: torch.device) -> int:
    """How many classes the module answers, which images of one's own need not all hold."""
    logits: object = None
    with asking(module, 0), frozen(module), torch.no_grad(), suppress(Exception):  # the evaluation tells
        logits = call_in_its_dtype(module, data.test.images[:1].to(device))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        return data.num_classes
    if logits.shape[1] < data.num_classes:
        raise InvalidArgument(
            f"{data.name}: a label is {data.num_classes - 1}, the module answers {logits.shape[1]} classes"
        )
    return int(logits.shape[1])


def _pick_device(module: nn.Module, device: str | torch.device | None) -> torch.device:
    """Where to compute; raises `InvalidArgument` for a missing device or a module on several devices."""
    found = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found)))
        raise InvalidArgument(f"the module lies on several devices ({names}): move it to one")
    try:
        place = module_device(module) if device is None else torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidArgument(f"device {str(device)!r} cannot be used: {one_line(error)}") from None
    if place.type == "meta":
        raise InvalidArgument("the module lies on the device 'meta', which holds no numbers")
    return torch.empty(0, device=place).device


def _advance(reporter: Reporter, cost: float, samples: int) -> None:
    reporter.advance(cost * samples)


def _seconds_per_sample(module: nn.Module, data: Data, batch_size: int, device: torch.device) -> float:
    """Seconds of a forward pass per sample: the faster of two batches."""
    images, times = data.test.images[:batch_size].to(device), []
    with asking(module, 0), frozen(module), torch.no_grad():
        for _ in range(2):
            began = time.perf_counter()
            with suppress(ModelFailure):  # of a sample or of the model: the evaluation tells
                call_model(module, images.clone(), data.num_classes).sum().item()
            times.append(time.perf_counter() - began)
    return min(times) / len(images)


def _passes(cell: Cell) -> float:
    """Cost of `cell` in forward passes of a sample; a backward pass counts twice."""
    threat = THREATS.get(cell.threat)
    forwards, backwards = threat.queries(threat.parameters)
    return (forwards + 2.0 * backwards + 1.0) * cell.samples * cell.draws
