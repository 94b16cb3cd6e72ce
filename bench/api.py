"""robustode from Python: evaluate a module you have, load a model that a run has trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from .._errors import InvalidArgument, RecordError
from .._registry import unknown_name
from ..attacks import THREATS
from ..models import MODELS
from .data import DATASETS, load_data
from .device import environment
from .evaluate import evaluate_cell
from .headline import Headline
from .records import Cell
from .stats import wilson
from .store import Store

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
    "fmn-linf": 0.1,
    **dict.fromkeys(("fmn-l2", "ddn-l2", "cw-l2"), 0.5),
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
    data_root: str | Path | None = None,
) -> pd.DataFrame:
    """Accuracy of a trained module under threats; nothing is stored.

    Parameters
    ----------
    module
        Maps images in [0, 1], shape (N, C, H, W), to logits (N, K); it stays on its device, and its
        modes, parameters and gradients are left as they are.
    threats
        Names, or (name, strength) pairs in pixel units; see ``robustode list threats``.
    samples
        The first so many test samples; all of them by default.
    draws
        Repetitions of a random threat.

    Returns
    -------
    DataFrame
        One row a threat: ``threat, norm, strength, accuracy, low, high, samples, draws, seconds``;
        `low` and `high` bound the accuracy by a 95% Wilson interval.

    Raises
    ------
    UnknownName, InvalidArgument
        For names and strengths that cannot be used, before anything is computed.
    ModelFailure, NonFinite, BudgetViolation
        When the module breaks its contract or an attack its budget.
    """
    DATASETS.get(dataset)
    for name, value in (("samples", samples), ("draws", draws), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InvalidArgument(f"{name} must be at least 1, not {value}")
    plans = []
    for item in [threats] if isinstance(threats, str) else threats:
        name, strength = (item, DEFAULT_STRENGTHS.get(item)) if isinstance(item, str) else item
        threat = THREATS.get(name)
        if strength is None:
            raise InvalidArgument(f"threat {name}: give its strength, as ({name!r}, {threat.strength_name})")
        plans.append((threat, threat.check_strength(float(strength))))
    data = load_data(dataset, Path(data_root) if data_root else None)
    count = min(samples or len(data.test), len(data.test))
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    rows = []
    for threat, strength in plans:
        cell = Cell(
            kind="accuracy",
            dataset=dataset,
            index_sha256=data.index_sha256,
            model="module",
            model_version="0",
            threat=threat.name,
            threat_version=threat.version,
            family=threat.family,
            norm=threat.norm,
            protocol=threat.protocol,
            parameters=dict(threat.parameters),
            strength=strength,
            draws=draws if threat.stochastic else 1,
            attack_seed=seed,
            samples=count,
            batch_size=batch_size,
        )
        record = evaluate_cell(
            cell,
            module,
            data.test,
            threat,
            num_classes=data.num_classes,
            device=device,
            environment=environment(device),
        )
        low, high = wilson(record.accuracy * count, count)
        rows.append(
            {
                "threat": threat.name,
                "norm": threat.norm,
                "strength": strength,
                "accuracy": record.accuracy,
                "low": float(low),
                "high": float(high),
                "samples": count,
                "draws": cell.draws,
                "seconds": record.seconds,
            }
        )
    return pd.DataFrame(rows)


def load_model(folder: str | Path, name: str, *, seed: int = 0, model: str | None = None) -> nn.Module:
    """Return the trained model called `name` from a results folder, in eval mode on the CPU.

    Parameters
    ----------
    folder
        What ``--out`` named, for example ``results/quick``.
    seed
        Training seed.
    model
        ``FILE.py:factory`` for a model that lives in a file.

    Raises
    ------
    InvalidArgument
        When no such training is stored.
    CheckpointError
        When its weights are missing or do not match the hash in its record.
    """
    from .external import resolve_model
    from .plugins import load_plugins
    from .trained import trained_model

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
    if not trainings:
        have = ", ".join(sorted({f"{r.cell.model} {r.cell.training_seed}" for r in records})) or "nothing"
        raise InvalidArgument(
            f"{folder} holds no trained {name} with seed {seed}: train it with `robustode run`, or take one "
            f"of these models and seeds: {have}"
        )
    try:
        preferred = Headline.read(store.folder).preferred
    except RecordError:
        preferred = frozenset()
    newest = max(trainings, key=lambda r: (r.cell.key() in preferred, str(r.environment.get("created", ""))))
    return trained_model(store, newest, external or MODELS.get(str(newest.card.get("architecture", name))))
