"""The conformance checks of a model: its own, one per claim, and the audits of an untrained model.

Each failure says what to change.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._errors import ContractBroken, NonFinite, RobustodeError, one_line
from ..._registry import unknown_name
from ...attacks.core.model_call import call_model
from ...attacks.core.modes import set_mode, training_mode
from ...models import ModelSpec
from ..audits.context import Context
from ..audits.library import all_audits, audit_names
from ..audits.registry import Audit
from ..evaluation.accuracy import frozen
from ..runtime.construct import construct
from ..runtime.foreign_code import foreign_code, source_of
from ..runtime.time_limit import time_limit
from .claims import CLAIM_CHECKS, check_tanh_fields, states_tanh_fields

SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
"""Input shapes (C, H, W) every model is built for."""
CLASSES = (2, 3, 10)
SHAPE = (1, 8, 8)
"""The shape the other checks use."""
FORMER_NAMES = {
    "state-round-trip": "state_round_trip",
    "double-precision": "double_precision",
    "tanh-field": "tanh_field",
}
"""What checks were called before; `expected_failures` may still name them so."""
LIMIT = 50.0
"""Seconds for all checks of one model together."""


class NothingToCheck(Exception):
    """Raised by a check that does not concern the model; says why."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Verdict of one check.

    Attributes
    ----------
    exempt
        The model's stated reason for an expected failure.
    absent
        Why there was nothing to check.
    """

    check: str
    error: str | None = None
    exempt: str | None = None
    absent: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the model passes this check, or fails it as it states in `expected_failures`."""
        return self.error is None or self.exempt is not None

    def __str__(self) -> str:
        if self.absent is not None:
            return f"n/a     {self.check}: {self.absent}"
        if self.error is None:
            return f"pass    {self.check}" + (" (its exemption was not needed here)" if self.exempt else "")
        if self.exempt is not None:
            return f"exempt  {self.check}: {self.exempt} [{self.error}]"
        return f"FAIL    {self.check}: {self.error}"


def _build(
    spec: ModelSpec, shape: tuple[int, int, int] = SHAPE, classes: int = 10, seed: int = 0
) -> nn.Module:
    return construct(spec.build, shape, classes, spec.resolve(), seed=seed, images=_images(shape, 2))


def _images(shape: tuple[int, int, int] = SHAPE, count: int = 16) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def check_shapes(spec: ModelSpec) -> None:
    """Logits (N, K) for every shape and number of classes, for N = 1 too."""
    for shape, classes in itertools.product(SHAPES, CLASSES):
        try:
            model = _build(spec, shape, classes)
            with torch.no_grad():
                for count in (1, 3):
                    call_model(model, _images(shape, count), classes)
        except Exception as error:
            raise ContractBroken(
                f"for input {shape} and {classes} classes: {one_line(error)}; use input_shape and num_classes"
            ) from error


def check_gradients(spec: ModelSpec) -> None:
    """Finite gradients to the input, not all zero, and to every trainable parameter."""
    model = _build(spec)
    set_mode(model, training=True)
    images = _images().requires_grad_(True)
    logits = call_model(model, images, 10)
    if not logits.requires_grad:
        raise ContractBroken("the logits carry no gradient: do not detach or convert to numpy in forward")
    F.cross_entropy(logits, torch.arange(len(images)) % 10).backward()
    if images.grad is None or not bool(images.grad.any()):
        raise ContractBroken("no gradient reaches the input: do not detach, round or threshold it in forward")
    for name, tensor in [("the input", images), *model.named_parameters()]:
        if tensor.requires_grad and tensor.grad is None:
            raise ContractBroken(
                f"no gradient reaches parameter {name}: use it in forward, or do not register it"
            )
        if tensor.grad is not None and not bool(tensor.grad.isfinite().all()):
            raise NonFinite(f"the gradient of {name} is NaN or infinite at initialisation")


def check_state_round_trip(spec: ModelSpec) -> None:
    """Weights saved and loaded into a fresh model give the same logits."""
    model, other = _build(spec, seed=0), _build(spec, seed=1)
    with training_mode(model):
        plain = {name: t.contiguous().clone() for name, t in model.state_dict().items()}
    with training_mode(other):
        other.load_state_dict(safetensors.torch.load(safetensors.torch.save(plain)))
    with torch.no_grad():
        same = torch.equal(call_model(model, _images(), 10), call_model(other, _images(), 10))
    if not same:
        raise ContractBroken(
            "logits change after saving and loading: keep every tensor as a parameter or a buffer"
        )


def check_double_precision(spec: ModelSpec) -> None:
    """The same model in float64, with logits near those in float32."""
    model, images = _build(spec), _images()
    with torch.no_grad():
        single = call_model(model, images, 10)
        double = call_model(model.double(), images.double(), 10)
    if double.dtype != torch.float64:
        raise ContractBroken(
            f"the model turned float64 into {double.dtype}: take dtype and device from the input"
        )
    change = float((single - double).abs().max() / double.abs().max().clamp_min(1e-12))
    if change > 1e-2:
        raise ContractBroken(
            f"logits in float32 and float64 differ by {change:.2g} of their size: ill-conditioned"
        )


def check_tanh_field(spec: ModelSpec) -> None:
    """Layers that state the matrices of their field, for bounds and the fast path, state the right ones."""
    model = _build(spec)
    if not states_tanh_fields(model):
        raise NothingToCheck("no layer of its flow states a tanh_field")
    with torch.no_grad():
        check_tanh_fields(model)


def check_claim(spec: ModelSpec, claim: str) -> None:
    """Measure one declared claim at two initialisations."""
    for seed in (0, 1):
        model = _build(spec, seed=seed)
        with frozen(model):
            CLAIM_CHECKS[claim](model, _images())


CHECKS: dict[str, Callable[[ModelSpec], None]] = {
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
    """
    images = _images()
    if audit.extreme_images:
        images[-3:] = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE), images[-1].round()])
    for seed in range(audit.initialisations):
        context = Context(
            model=_build(spec, seed=seed).requires_grad_(False),
            images=images,
            labels=torch.arange(len(images)) % 10,
            num_classes=10,
            dataset="noise",
            spec=spec,
            strict=True,
        )
        verdict = audit(context)
        if verdict.verdict == "flag":
            raise ContractBroken(f"{verdict.sentence} {audit.remedy}".rstrip(" ."))
        if verdict.verdict == "not applicable":
            raise NothingToCheck(verdict.sentence)


def checks_for(spec: ModelSpec) -> dict[str, Callable[[ModelSpec], None]]:
    """The checks of one model by name: the common ones, one for each claim, and the audits."""
    claims = {f"claim:{claim}": partial(check_claim, claim=claim) for claim in sorted(spec.claims)}
    audits = {audit.name: partial(check_audit, audit=audit) for audit in all_audits() if audit.untrained}
    return {**CHECKS, **claims, **audits}


def run_check(spec: ModelSpec, name: str, seconds: float = LIMIT) -> Result:
    """Run the check `name` of `checks_for` within `seconds`; an exception is a failure."""
    error = absent = None
    try:
        with (
            time_limit(seconds, f"check {name}", ", what was left of a minute for all checks"),
            foreign_code(source_of(spec.build), seed=0),
        ):
            checks_for(spec)[name](spec)
    except NothingToCheck as nothing:
        absent = str(nothing)
    except RobustodeError as failure:
        error = one_line(failure, limit=400)
    except (Exception, SystemExit) as failure:
        error = f"{type(failure).__name__}: {one_line(failure)}"
    expected = spec.expected_failures
    exempt = expected.get(name, expected.get(FORMER_NAMES.get(name, name)))
    return Result(check=name, error=error, exempt=exempt, absent=absent)


def check_model(spec: ModelSpec) -> Iterator[Result]:
    """Run every check of `spec`, yielding each result as it comes."""
    deadline = time.monotonic() + LIMIT
    checks = checks_for(spec)
    for name in checks:
        yield run_check(spec, name, max(deadline - time.monotonic(), 0.1))
    known = list(dict.fromkeys([*checks, *audit_names()]))
    for name in sorted(set(spec.expected_failures) - {*known, *FORMER_NAMES.values()}):
        yield Result(check=name, error=f"expected_failures: {unknown_name('check', name, known)}")
