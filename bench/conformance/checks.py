"""The conformance checks of a model: its own, one per claim, and the audits of an untrained model.

Each failure says what to change. A check returns None or a warning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import safetensors.torch
import torch
from torch import Tensor, nn

from ..._errors import ContractBroken, NotAsked, TimeLimitExceeded, one_line
from ...attacks.core.model_call import call_model
from ...attacks.core.modes import training_mode
from ...models import ModelSpec
from ..audits.context import Context
from ..audits.library import all_audits
from ..audits.measures import coarsest_eps
from ..audits.registry import NOT_ASKED, Audit
from ..evaluation.accuracy import frozen
from ..runtime.construct import construct
from ..runtime.float64 import in_float64
from ..training.check_statements import check_statements
from .claims import CLAIM_CHECKS, IN_FLOAT64, NUM_CLASSES, states_tanh_fields
from .gradients import check_gradients_of
from .result import NothingToCheck

SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
"""Input shapes (C, H, W) every model is built for."""
CLASSES = (2, 3, 10)
SHAPE = (1, 8, 8)
"""The shape the other checks use."""


def _build(
    spec: ModelSpec, shape: tuple[int, int, int] = SHAPE, classes: int = NUM_CLASSES, seed: int = 0
) -> nn.Module:
    return construct(spec.build, shape, classes, spec.resolve(), seed=seed, images=_images(shape, 2))


def _images(shape: tuple[int, int, int] = SHAPE, count: int = 16) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def check_shapes(spec: ModelSpec) -> None:
    """Logits (N, K) for every shape and number of classes, for N = 1 too; the images are left as they are."""
    for shape, classes in itertools.product(SHAPES, CLASSES):
        try:
            model = _build(spec, shape, classes)
            with torch.no_grad():
                for count in (1, 3):
                    call_model(model, images := _images(shape, count), classes)
                    if not torch.equal(images, _images(shape, count)):
                        raise ContractBroken("the model changes its input: work on a copy of the images")
        except TimeLimitExceeded:
            raise
        except Exception as error:
            raise ContractBroken(
                f"for input {shape} and {classes} classes: {one_line(error)}; use input_shape and "
                "num_classes, and take a batch of any size"
            ) from error


def check_gradients(spec: ModelSpec) -> str | None:
    """See `check_gradients_of`."""
    return check_gradients_of(_build(spec), _images(), NUM_CLASSES)


def check_state_round_trip(spec: ModelSpec) -> None:
    """Weights saved and loaded into a fresh model give the same logits."""
    model, other = _build(spec, seed=0), _build(spec, seed=1)
    with training_mode(model):
        plain = {name: _stored(name, value) for name, value in model.state_dict().items()}
    with training_mode(other):
        other.load_state_dict(safetensors.torch.load(safetensors.torch.save(plain)))
    with torch.no_grad():
        same = torch.equal(*(call_model(each, _images(), NUM_CLASSES) for each in (model, other)))
    if not same:
        raise ContractBroken(
            "logits change after saving and loading: keep every tensor as a parameter or a buffer"
        )


def _stored(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ContractBroken(
            f"state_dict holds {name}, a {type(value).__name__}: keep tensors alone in it, which safetensors "
            "can store"
        )
    return value.contiguous().clone()


def check_double_precision(spec: ModelSpec) -> None:
    """The same model in float64, with logits near those in its own precision."""
    model, images = _build(spec), _images()
    with torch.no_grad():
        single = call_model(model, images, NUM_CLASSES)
        with in_float64(model, images):
            double = call_model(model, images.double(), NUM_CLASSES)
    change = float((single - double).abs().max() / double.abs().max().clamp_min(1e-12))
    if change > max(1e-2, 64 * coarsest_eps(model, single)):
        own = str(single.dtype).removeprefix("torch.")
        raise ContractBroken(
            f"logits in {own} and float64 differ by {change:.2g} of their size: ill-conditioned"
        )


def check_tanh_field(spec: ModelSpec) -> None:
    """The matrices of a field, for bounds and the fast path, are those of its ``forward``."""
    model = _build(spec)
    check_statements(model, _images(), of="random images")
    if not states_tanh_fields(model):
        raise NothingToCheck("no layer of its flow states a tanh_field")


def check_claim(spec: ModelSpec, claim: str) -> None:
    """Measure one declared claim at two initialisations."""
    for seed in (0, 1):
        model = _build(spec, seed=seed)
        with in_float64(model, _images()) if claim in IN_FLOAT64 else frozen(model):
            CLAIM_CHECKS[claim](model, _images())


CHECKS: dict[str, Callable[[ModelSpec], str | None]] = {
    "shapes": check_shapes,
    "gradients": check_gradients,
    "state-round-trip": check_state_round_trip,
    "tanh-field": check_tanh_field,
    "double-precision": check_double_precision,
}


def check_audit(spec: ModelSpec, audit: Audit) -> None:
    """One audit of the untrained model, on random images and, if it asks for them, extreme ones.

    Raises
    ------
    ContractBroken
        The audit flags the model; what it measured, and what to change.
    NothingToCheck
        The audit does not apply to it.
    NotAsked
        The audit could not put its question to it.
    """
    images = _images()
    if audit.extreme_images:
        images[-3:] = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE), images[-1].round()])
    for seed in range(audit.initialisations):
        context = Context(
            model=_build(spec, seed=seed),
            images=images,
            labels=torch.arange(len(images)) % NUM_CLASSES,
            num_classes=NUM_CLASSES,
            dataset="noise",
            spec=spec,
            strict=True,
        )
        verdict = audit(context)
        if verdict.verdict == "flag":
            raise ContractBroken(f"{verdict.sentence} {audit.remedy}".rstrip(" ."))
        if verdict.verdict == "not applicable":
            raise NothingToCheck(verdict.sentence.rstrip("."))
        if verdict.verdict == NOT_ASKED:
            raise NotAsked(verdict.sentence.rstrip("."))


def checks_for(spec: ModelSpec) -> dict[str, Callable[[ModelSpec], str | None]]:
    """The checks of one model by name: the common ones, one for each claim, and the audits."""
    claims = {f"claim:{claim}": partial(check_claim, claim=claim) for claim in sorted(spec.claims)}
    audits = {audit.name: partial(check_audit, audit=audit) for audit in all_audits() if audit.untrained}
    return {**CHECKS, **claims, **audits}
