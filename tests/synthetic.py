"""Realistic records without training anything: margins per sample, broken as the strength grows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from robustode.bench.records.headline import Headline
from robustode.bench.records.predictions import NO_ANSWER, predictions, split_outcomes
from robustode.bench.records.record import Cell, Record
from robustode.bench.records.store import Store
from sklearn.datasets import load_digits

CORE = ("resnet", "node", "h-node", "ch-node")
MORE = ("anode", "sonode", "tisode", "sodef", "lyanet", "heavy-ball-node")
GRIDS: dict[str, tuple[str | None, Sequence[float], float]] = {  # norm, strengths, how much it hurts
    "gaussian": (None, (0.05, 0.1, 0.2, 0.3), 2.3),
    "salt-pepper": (None, (0.02, 0.05, 0.1, 0.2), 3.2),
    "uniform": (None, (0.1, 0.2, 0.3, 0.4), 1.4),
    "fgsm-linf": ("linf", (0.02, 0.05, 0.1, 0.2), 5.0),
    "pgd-linf": ("linf", (0.02, 0.05, 0.1, 0.2), 6.5),
    "fgsm-l2": ("l2", (0.1, 0.25, 0.5, 1.0), 1.0),
    "pgd-l2": ("l2", (0.1, 0.25, 0.5, 1.0), 1.3),
}
HEADLINE = Headline(
    preset="quick",
    title="robustode · quick",
    reported={"gaussian": 0.2, "salt-pepper": 0.1, "uniform": 0.3, "linf": 0.1, "l2": 0.5},
    rank="linf",
)
FAILURE = "NonFinite: logits are NaN in 3 of 64 samples"


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int64)


def number(*names: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:4], "little")


def toughness(model: str) -> float:
    known = {"resnet": 0.42, "node": 0.5, "h-node": 0.63, "ch-node": 0.9}
    return known.get(model, 0.4 + 0.5 * (number(model) % 100) / 100)


def cell(model: str, seed: int = 0, **changes: object) -> Cell:
    values: dict[str, object] = {
        "kind": "accuracy",
        "dataset": "digits",
        "index_sha256": "1" * 64,
        "model": model,
        "model_version": "1",
        "hyperparameters": {"channels": 16, "steps": 10, "gamma": 0.5},
        "recipe": {"name": "quick", "epochs": 30, "learning_rate": 0.003},
        "training_seed": seed,
        "checkpoint_sha256": hashlib.sha256(f"{model}{seed}".encode()).hexdigest(),
    }
    return Cell(**(values | changes))  # type: ignore[arg-type]


def record_of(cell: Cell, correct: np.ndarray, labels: np.ndarray | None = None, **changes: object) -> Record:
    """An accuracy record with these outcomes, of shape (draws, samples)."""
    correct = np.atleast_2d(np.asarray(correct, bool))
    labels = np.zeros(correct.shape[1], np.int64) if labels is None else labels
    prediction = np.where(correct, labels, (labels + 1 + np.arange(labels.size) % 7) % 10).astype(np.int16)
    changes.setdefault("environment", {"created": "2026-01-01T00:00:00Z", "device": "cpu: Intel Xeon"})
    return Record(cell=cell, outcomes=split_outcomes(prediction, correct), **changes)  # type: ignore[arg-type]


def accuracy_record(
    model: str, seed: int, threat: str, strength: float, samples: int, created: str, **changes: object
) -> Record:
    images, labels = digits()
    labels = labels[:samples]
    norm, _, hurt = GRIDS.get(threat, (None, (), 0.0))
    family = "clean" if threat == "clean" else "gradient" if norm else "noise"
    draws = 3 if family == "noise" else 1
    spread = np.random.default_rng(number(model, seed))
    margin = spread.normal(1.0, 0.42, samples) * toughness(model) + 0.12
    rng = np.random.default_rng(number(model, seed, threat, strength))
    correct = margin + rng.normal(0, 0.05, (draws, samples)) > hurt * strength
    k = min(8, samples)
    noise = rng.choice([-1.0, 1.0], (k, 8, 8)) if norm == "linf" else rng.normal(0, 1, (k, 8, 8))
    scale = strength / 4 if norm == "l2" else strength
    pictures = np.clip(images[:k] + scale * noise, 0, 1)
    what = cell(
        model, seed, threat=threat, family=family, norm=norm, strength=strength, draws=draws, **changes
    )
    record = record_of(
        Cell(**(what.__dict__ | {"samples": samples, "batch_size": 64})),
        correct,
        labels,
        nfe=None if model == "resnet" else 10.0 + number(model) % 30,
        environment={"created": created, "device": "cpu: Intel Xeon", "torch": "2.9.0"},
    )
    examples = {
        "index": np.arange(k),
        "label": labels[:k],
        "prediction": predictions(record.outcomes, labels)[0, :k].astype(np.int64),
        "image": np.round(pictures * 255).astype(np.uint8)[:, None],
    }
    return Record(**(record.__dict__ | {"examples": examples}))


def training_record(model: str, seed: int, created: str, **changes: object) -> Record:
    epochs = np.arange(1, 31)
    loss = 2.2 * np.exp(-epochs / 6) + 0.05
    return Record(
        cell=cell(model, seed, kind="training", checkpoint_sha256=None, batch_size=64, **changes),
        outcomes={
            "train_loss": loss,
            "validation_loss": loss * 1.2,
            "validation_accuracy": 1 - 0.9 * np.exp(-epochs / 4),
        },
        measures={"best_epoch": 28.0, "parameters": float(4000 + number(model) % 5000)},
        card={
            "summary": f"The {model} classifier, one block between a stem and a linear head.",
            "reference": f"A. Author, {model}, NeurIPS 2021, https://arxiv.org/abs/2106.00001",
            "claims": ["fixed_step", "contractive"] if model == "ch-node" else [],
            "expected_failures": {"batch-independence": "batch norm in the stem"}
            if model == "resnet"
            else {},
        },
        seconds=20.0 + number(model, seed) % 30,
        environment={"created": created, "device": "cpu: Intel Xeon", "torch": "2.9.0"},
    )


def throughput_record(
    model: str, threat: str, batch: int, device: str, created: str, **changes: object
) -> Record:
    rng = np.random.default_rng(number(model, threat, batch, device))
    fast = (30.0 if device.startswith("cuda") else 1.0) * (0.3 if threat == "training-step" else 1.0)
    per_second = (
        fast * (90_000 if model == "resnet" else 4_000 + number(model) % 14_000) * batch / (batch + 24)
    )
    seconds = batch / per_second * rng.lognormal(0, 0.06, 30)
    middle = float(np.median(seconds))
    return Record(
        cell=cell(
            model,
            kind="throughput",
            threat=threat,
            family="timing",
            batch_size=batch,
            device=device,
            **changes,
        ),
        outcomes={"seconds": seconds},
        measures={
            "samples_per_second": batch / middle,
            "latency_median": middle,
            "latency_p95": float(np.percentile(seconds, 95)),
            "peak_memory_bytes": 3e8 + 1e5 * batch,
            "parameters": float(4000 + number(model) % 5000),
        },
        environment={"created": created, "device": device},
    )


CHECKS = {
    "finite": ("samples", ()),
    "determinism": ("distance", ("largest distance",)),
    "zero-gradients": ("share", ("as it is", "logits rescaled")),
    "gradient-fidelity": ("cosine", ("float32", "float64")),
}


def audit_record(
    model: str, seed: int, name: str, created: str, verdict: str = "pass", exempt: str = "", **changes: object
) -> Record:
    """What one check says of a trained network, with the arrays of its plot."""
    unit, lines = CHECKS[name]
    rng = np.random.default_rng(number(model, seed, name))
    card = {
        "title": f"what {name} asks",
        "verdict": verdict,
        "sentence": f"One of the samples says {verdict}.",
        "unit": unit,
        "axes": ["sample, sorted", "what was measured"],
    }
    return Record(
        cell=cell(model, seed, kind="audit", threat=name, family="audit", samples=128, **changes),
        outcomes={"x": np.arange(128.0), **{line: np.sort(rng.normal(size=128)) for line in lines}},
        measures={"value": 2.0 if verdict == "flag" else 0.5, "threshold": 1.0},
        card=card | ({"exempt": exempt} if exempt else {}),
        environment={"created": created, "device": "cpu: Intel Xeon"},
    )


def audits(
    models: Iterable[str],
    seeds: Sequence[int] = (0,),
    *,
    found: Mapping[tuple[str, str], tuple[str, str]] | None = None,
    created: str = "2026-01-01T00:00:00Z",
    **changes: object,
) -> list[Record]:
    """A record of every check in `CHECKS`; `found` maps (model, check) to a verdict and a reason."""
    return [
        audit_record(m, s, name, created, *(found or {}).get((m, name), ("pass", "")), **changes)
        for m in models
        for s in seeds
        for name in CHECKS
    ]


def flow_record(
    model: str,
    threat: str,
    device: str = "cpu: Intel Xeon",
    *,
    rates: tuple[float, float] = (20e9, 100e9),
    work: tuple[float, float] = (2e8, 1e7),
    **changes: object,
) -> Record:
    """A flow's timing at batch size 256; `rates` are bytes/s, operations/s, and `work` operations, bytes."""
    record = throughput_record(model, threat, 256, device, "2026-01-01T00:00:00Z", **changes)
    floor = max(work[1] / rates[0], work[0] / rates[1])
    more = {
        "operations": work[0],
        "bytes": work[1],
        "copy_bandwidth": rates[0],
        "arithmetic_rate": rates[1],
        "floor_seconds": floor,
        "achieved": floor / record.measures["latency_median"],
    }
    return Record(**(record.__dict__ | {"measures": {**record.measures, **more}}))


def failed(record: Record, error: str = FAILURE, status: str = "nonfinite") -> Record:
    return Record(cell=record.cell, status=status, error=error, environment=record.environment)  # type: ignore[arg-type]


def records(
    models: Iterable[str] = CORE,
    seeds: Sequence[int] = (0,),
    samples: int = 200,
    *,
    threats: Iterable[str] = tuple(GRIDS),
    failures: Mapping[tuple[str, str, float], str] | None = None,
    devices: Sequence[str] = ("cpu: Intel Xeon",),
    training: bool = True,
    created: str = "2026-01-01T00:00:00Z",
    **changes: object,
) -> list[Record]:
    """Every record of a run; `failures` maps (model, threat, strength) to an error line."""
    made: list[Record] = []
    threats = tuple(threats)
    for model in models:
        for seed in seeds:
            if training:
                made.append(training_record(model, seed, created, **changes))
            for threat in ("clean", *threats):
                for strength in (0.0,) if threat == "clean" else GRIDS[threat][1]:
                    record = accuracy_record(model, seed, threat, strength, samples, created, **changes)
                    error = (failures or {}).get((model, threat, strength))
                    made.append(record if error is None else failed(record, error))
        for device in devices:
            for threat in ("inference", "training-step"):
                for batch in (1, 64, 256):
                    made.append(throughput_record(model, threat, batch, device, created, **changes))
    return made


def without_answers(made: Iterable[Record], models: Collection[str]) -> list[Record]:
    """The records, where for every other misclassified sample of `models` the model gave no answer."""

    def silent(record: Record) -> Record:
        wrong = record.outcomes["misclassified_as"].astype(np.int16)
        wrong[::2] = NO_ANSWER
        return replace(record, outcomes={**record.outcomes, "misclassified_as": wrong})

    return [silent(r) if r.cell.model in models and "correct" in r.outcomes else r for r in made]


def write(folder: Path, made: Iterable[Record], headline: Headline | None = HEADLINE) -> Path:
    """Put the records, and the plan unless it is None, into a results folder."""
    store = Store(folder)
    for record in made:
        store.put(record)
    if headline is not None:
        headline.write(folder)
    return folder
