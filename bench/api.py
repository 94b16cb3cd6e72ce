"""robustode from Python: evaluate a module you have, load a model that a run has trained."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from .._errors import InvalidArgument, RecordError, one_line
from .._registry import check_name, unknown_name
from ..attacks import THREATS, Threat
from ..attacks.core.model_call import call_model
from ..models import MODELS
from .config.plan import attack_norm
from .config.pretrained import RECIPE
from .data import DATASETS, Data, load_data
from .evaluation.accuracy import evaluate_cell, frozen
from .evaluation.solver_transfer import evaluate_through
from .records.headline import Headline
from .records.latest import newest_training
from .records.record import Cell
from .records.store import Store
from .report.statistics import summarise
from .runtime.progress import Quiet, Reporter, shown
from .runtime.random_state import random_state_kept
from .training.provenance import made_by, summary_line

DEFAULT_STRENGTHS: Mapping[str, float] = {
    "clean": 0.0,
    "gaussian": 0.2,
    "salt-pepper": 0.1,
    "uniform": 0.3,
    "fgsm-linf": 0.1,
    "pgd-linf": 0.1,
    "fgsm-l2": 0.5,
    "pgd-l2": 0.5,
    **dict.fromkeys(("autoattack-linf", "apgd-ce-linf", "apgd-t-linf", "fab-t-linf"), 0.1),
    **dict.fromkeys(("autoattack-l2", "apgd-ce-l2", "apgd-t-l2", "fab-t-l2"), 0.5),
    **dict.fromkeys(("square-linf", "spsa-linf"), 0.1),
    "square-l2": 0.5,
    **dict.fromkeys(("fmn-linf", "curve-linf"), 0.1),
    "solver-transfer-linf": 0.1,
    "solver-transfer-l2": 0.5,
    **dict.fromkeys(("fmn-l2", "ddn-l2", "cw-l2", "curve-l2"), 0.5),
    "paper-gaussian": 0.05,
    "paper-salt-pepper": 0.05,
}
"""The strength of a threat that is named without one."""


def evaluate(
    module: nn.Module,
    *,
    dataset: str = "digits",
    threats: str | Sequence[str | tuple[str, float]] = ("clean", "gaussian", "pgd-linf"),
    samples: int | None = None,
    draws: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    device: str | torch.device | None = None,
    data_root: str | Path | None = None,
    name: str = "module",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Accuracy of a trained module under threats, as a tidy table; nothing is stored.

    Parameters
    ----------
    module
        Maps images in [0, 1], shape (N, C, H, W), to logits (N, K). Its modes, parameters, gradients and
        device are left as they are, and so are the random numbers of torch, numpy and Python.
    threats
        Names, or (name, strength) pairs in pixel units; see ``robustode list threats``. A name alone stands
        for `DEFAULT_STRENGTHS`.
    samples
        The first so many test samples, at most all of them, which is the default.
    draws
        Repetitions of a random threat.
    seed
        Of noise and attacks.
    device
        Where to compute, on a copy of the module if it lies elsewhere; by default where it lies.
    name
        What the table calls the module.
    progress
        Show what is being done; by default on a terminal and in a notebook.

    Returns
    -------
    DataFrame
        One row a figure, columns `stats.COLUMNS` as in ``summary.csv``: ``accuracy`` of each threat, the
        ``worst-case`` of each norm that was attacked, where ``clean`` is among the threats, and field
        evaluations (``nfe``). `low` and `high` bound an accuracy by a 95% Wilson interval.

    Raises
    ------
    UnknownName, InvalidArgument
        For names, strengths and modules that cannot be used, before anything is computed.
    DataUnavailable
        When the dataset is not there.
    ModelFailure, NonFinite, BudgetViolation
        When the module breaks its contract or an attack its budget.
    """
    if not isinstance(module, nn.Module):
        raise InvalidArgument(f"evaluate takes a torch.nn.Module, not {type(module).__name__}")
    check_name(name, "model")
    DATASETS.get(dataset)
    for what, value in (("samples", samples), ("draws", draws), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InvalidArgument(f"{what} must be at least 1, not {value}")
    asked = [_threat(item) for item in ([threats] if isinstance(threats, str) else threats)]
    chosen = {(threat.name, strength): (threat, strength) for threat, strength in asked}
    if not chosen:
        raise InvalidArgument("threats names no threat: see `robustode list threats`")
    place = _place(module, device)
    data = load_data(dataset, Path(data_root) if data_root else None)
    count = samples or len(data.test)
    if count > len(data.test):
        raise InvalidArgument(f"{dataset} has {len(data.test)} test samples, not {samples}")
    cells = [
        Cell(
            kind="accuracy",
            dataset=dataset,
            index_sha256=data.index_sha256,
            model=name,
            model_version="0",
            recipe={"name": RECIPE},
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
    with random_state_kept(place), shown(progress) as reporter:
        if place != _home(module):
            module = copy.deepcopy(module).to(place)
        pace = 0.0 if isinstance(reporter, Quiet) else _seconds(module, data, batch_size, place)
        reporter.start(pace * sum(_passes(cell) for cell in cells))
        for cell, (threat, _) in zip(cells, chosen.values(), strict=True):
            cost = pace * _passes(cell) / (cell.samples * cell.draws)
            reporter.activity(f"{cell.threat} {cell.strength:g}")
            how = evaluate_cell if threat.through == "model" else evaluate_through
            record = how(
                cell,
                module,
                data.test,
                threat,
                num_classes=data.num_classes,
                device=place,
                environment=made_by(module, place),
                on_samples=partial(_advance, reporter, cost),
            )
            records.append(record)
            reporter.line(f"{name} · {cell.threat}: {summary_line([record])}")
    return summarise(records)


def _threat(item: str | tuple[str, float]) -> tuple[Threat, float]:
    """One threat and its strength, checked."""
    name, strength = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
    if not isinstance(name, str):
        raise InvalidArgument(f"a threat is a name or a pair (name, strength), not {item!r}")
    threat = THREATS.get(name)
    if isinstance(item, str):
        strength = DEFAULT_STRENGTHS.get(item)
    if strength is None:
        raise InvalidArgument(f"threat {name}: give its strength, as ({name!r}, {threat.strength_name})")
    try:
        number = float(strength)
    except (TypeError, ValueError):
        raise InvalidArgument(f"threat {name}: its strength is one number, not {strength!r}") from None
    return threat, threat.check_strength(number)


def _home(module: nn.Module) -> torch.device:
    """Where a module lies; the CPU for one without tensors."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _place(module: nn.Module, device: str | torch.device | None) -> torch.device:
    """Where to compute; raises `InvalidArgument` for a device that is not there or a module on several."""
    found = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found)))
        raise InvalidArgument(f"the module lies on several devices ({names}): move it to one")
    try:
        place = _home(module) if device is None else torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidArgument(f"device {str(device)!r} cannot be used: {one_line(error)}") from None
    if place.type == "meta":
        raise InvalidArgument("the module lies on the device 'meta', which holds no numbers")
    return torch.empty(0, device=place).device


def _advance(reporter: Reporter, cost: float, samples: int) -> None:
    reporter.advance(cost * samples)


def _seconds(module: nn.Module, data: Data, batch_size: int, device: torch.device) -> float:
    """Time a sample takes forwards: the faster of two batches."""
    images, times = data.test.images[:batch_size].to(device), []
    with frozen(module), torch.no_grad():
        for _ in range(2):
            began = time.perf_counter()
            call_model(module, images.clone(), data.num_classes).sum().item()
            times.append(time.perf_counter() - began)
    return min(times) / len(images)


def _passes(cell: Cell) -> float:
    """Forward passes that `cell` costs, a backward one counted twice."""
    threat = THREATS.get(cell.threat)
    forwards, backwards = threat.queries(threat.parameters)
    return (forwards + 2.0 * backwards + 1.0) * cell.samples * cell.draws


def load_model(
    folder: str | Path, name: str, *, seed: int = 0, recipe: str | None = None, model: str | None = None
) -> nn.Module:
    """Return the trained model called `name` from a results folder, in eval mode on the CPU.

    Parameters
    ----------
    folder
        What ``--out`` named, for example ``results/quick``.
    seed
        Training seed.
    recipe
        The training recipe, where the folder holds the model by several; by default the one last run.
    model
        ``FILE.py:factory`` for a model that lives in a file.

    Raises
    ------
    UnknownName, InvalidArgument
        When no such training is stored.
    CheckpointError
        When its code has changed since, or its weights are missing or do not match the hash in its record.
    """
    from .plugins.entry_points import load_plugins
    from .plugins.model_file import resolve_model
    from .training.load_trained import model_of, trained_model

    load_plugins(lambda line: warnings.warn(line, stacklevel=3))
    external = resolve_model(model) if model else None
    store = Store(Path(folder))
    records, _ = store.load()
    trainings = [
        r
        for r in records
        if r.cell.kind == "training"
        and r.status == "ok"
        and (r.cell.model, r.cell.training_seed) == (name, seed)
    ]
    known = sorted({*MODELS.names(), *(r.cell.model for r in records)})
    if not trainings and not model and name not in known:
        raise unknown_name("model", name, known)
    try:
        preferred = Headline.read(store.folder).preferred
    except RecordError:
        preferred = frozenset()
    newest = newest_training(trainings, preferred, recipe)
    if newest is None:
        have = ", ".join(sorted({f"{r.cell.model} {r.cell.training_seed}" for r in records})) or "nothing"
        raise InvalidArgument(
            f"{folder} holds no trained {name} with seed {seed}: train it with `robustode run`, or take one "
            f"of these models and seeds: {have}"
        )
    return trained_model(store, newest, external or model_of(newest, how="model='{}'"))
