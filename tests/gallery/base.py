"""Used by defective models and controls: a random flow between a stem and a head fitted by least squares."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import stubs
import torch
from robustode.attacks import Threat
from robustode.bench.audits import audit_model
from robustode.bench.audits.context import Context
from robustode.bench.audits.registry import AUDITS, AuditResult
from robustode.bench.audits.stored_records import StoredRecords
from robustode.bench.data import Data, load_data
from robustode.bench.runtime.foreign_code import running
from robustode.bench.solvers import changed_model
from robustode.models import MODELS, ModelSpec
from torch import Tensor, nn

SAMPLES = 32
AS_AUDITED = {"step-counts": 128}
"""Samples of the checks whose thresholds, a few points, are less than two of the samples above."""
EPS = 0.05


@dataclass(frozen=True)
class Case:
    """A model to audit, what it says of itself, and what is stored of it."""

    model: nn.Module
    claims: frozenset[str] = frozenset()
    stored: StoredRecords = field(default_factory=StoredRecords)
    dataset: str = "digits"
    same_as: str = ""
    """A name that equal controls share, so that they are audited once."""


@dataclass(frozen=True)
class Defect:
    """One defect: the audit that must flag it, and the makers of defective model and control by seed."""

    flagged_by: str
    defective: Callable[[int], Case]
    control: Callable[[int], Case]


class Wrapped(nn.Module):
    """A model behind something that it did not ask for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


@functools.cache
def load(name: str) -> Data:
    """A dataset, read once."""
    return load_data(name)


def digits() -> Data:
    return load("digits")


def fitted(name: str, seed: int, size: float = 10.0, **hyperparameters: object) -> nn.Module:
    """A registered model with random weights and a head fitted by ridge regression to one-hot labels."""
    data = digits()
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = spec.build(data.input_shape, data.num_classes, **spec.resolve(hyperparameters)).eval()
    fit(model, model.head, size)
    return model.requires_grad_(False)


@torch.no_grad()
def fit(model: nn.Module, head: nn.Linear, size: float = 10.0) -> None:
    """Set `head` so that the logits of training images are near `size` times their one-hot labels."""
    data = digits()
    train = data.train.first(1000)
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(train.images)
    handle.remove()
    features = seen[0].double()
    features = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    targets = size * nn.functional.one_hot(train.labels, data.num_classes).double()
    gram = features.T @ features
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram + ridge, features.T @ targets)
    head.weight.copy_(solution[:-1].T)
    head.bias.copy_(solution[-1])


@functools.cache
def sound_model(seed: int) -> nn.Module:
    """A NODE on a fixed grid that is fine enough."""
    return fitted("node", seed, steps=16, final_time=1.0)


SHORT = {"long_steps": 100, "queries": 100, "apgd_steps": 20, "targets": 2, "spsa_steps": 1}


def shorten_audits(patch: pytest.MonkeyPatch) -> None:
    """Surrogates and attacks of fewer steps: what the audits ask is tested, not how hard they try."""
    patch.setattr(changed_model, "SURROGATE_GRIDS", (("euler", 24), ("rk4", 12)))
    patch.setattr(audit_model, "Context", functools.partial(Context, **SHORT))
    threat = Context.threat

    def short(self: Context, name: str, **parameters: object) -> Threat:
        shorter = {"steps": 3, "restarts": 1} if name == "pgd" else {}
        return threat(self, name, **(parameters | shorter))

    patch.setattr(Context, "threat", short)


def context_of(case: Case, seed: int, samples: int = SAMPLES, **changes: object) -> Context:
    """What a check is given of `case`: a few test digits, and attacks shorter than a real audit's."""
    data = load(case.dataset)
    test = data.test.first(samples)
    spec: ModelSpec = stubs.spec("gallery", claims=case.claims)
    settings = SHORT | changes
    return Context(
        model=case.model.eval(),
        images=test.images,
        labels=test.labels,
        num_classes=data.num_classes,
        dataset=data.name,
        spec=spec,
        stored=case.stored,
        norm="linf",
        eps=EPS,
        seed=seed,
        **settings,
    )


def audit_case(case: Case, seed: int, names: Sequence[str]) -> dict[str, AuditResult | str]:
    """Verdicts by name; the error's text where a check cannot be run."""
    found: dict[str, AuditResult | str] = {}
    contexts: dict[int, Context] = {}
    for name in names:
        audit = AUDITS.get(name)
        try:
            samples = AS_AUDITED.get(name, SAMPLES)
            if samples not in contexts:
                contexts[samples] = context_of(case, seed, samples)
            with running(case.model, seed):  # as `audit_model` does
                found[name] = audit(case.stored if audit.needs == "records" else contexts[samples])
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found
