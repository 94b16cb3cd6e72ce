"""Does a model keep the contract? One function a check; each failure says what to change."""

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

from ..._errors import ContractBroken, NonFinite, RobustodeError
from ...models import ModelSpec
from ..audits.context import Context
from ..audits.library import audit_names
from ..audits.registry import AUDITS
from ..evaluation.accuracy import frozen
from ..runtime.checked_model import call_model, one_line
from ..runtime.time_limit import time_limit
from .claims import CLAIM_CHECKS, check_tanh_fields, states_tanh_fields

SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
"""Input shapes (C, H, W) every model is built for."""
CLASSES = (2, 3, 10)
SHAPE = (1, 8, 8)
"""The shape the other checks use."""
BATCH_TOLERANCE = 1e-4
"""Largest relative change of logits between a sample alone and the same sample in a batch."""
UNTRAINED = (
    "finite",
    "logits",
    "determinism",
    "batch-independence",
    "zero-gradients",
    "gradient-fidelity",
    "lipschitz-bound",
)
"""Fast audits that say something of a model before it is trained: all but those of the solver's steps, which
must suit the weights that training finds (contraction through them is one), and those that read records."""
LIMIT = 50.0
"""Seconds for all checks of one model together."""


class NothingToCheck(Exception):
    """Raised by a check that does not concern the model; says why."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Outcome of one check.

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
        """Whether the model keeps the contract here, or says why it does not."""
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
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = spec.build(shape, classes, **spec.resolve())
        if not isinstance(model, nn.Module):
            raise ContractBroken(f"build returned {type(model).__name__}: return a torch.nn.Module")
        call_model(model.eval(), _images(shape, 2), classes)
    return model


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


def check_finite(spec: ModelSpec) -> None:
    """Finite logits for black, white and random images."""
    model = _build(spec)
    with torch.no_grad():
        for images in (torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE), _images()):
            call_model(model, images, 10)


def check_logits(spec: ModelSpec) -> None:
    """Logits and not probabilities: a softmax inside the model hides gradients from attacks."""
    with torch.no_grad():
        logits = call_model(_build(spec), _images(), 10)
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(len(logits)), atol=1e-4):
        raise ContractBroken(
            "every row is non-negative and sums to 1: return logits, without the final softmax"
        )


def check_gradients(spec: ModelSpec) -> None:
    """Finite gradients to the input, not all zero, and to every trainable parameter."""
    model = _build(spec).train()
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


def check_deterministic(spec: ModelSpec) -> None:
    """The same logits twice in eval mode."""
    model, images = _build(spec), _images()
    with torch.no_grad():
        first, second = call_model(model, images, 10), call_model(model, images, 10)
    if not torch.equal(first, second):
        change = float((first - second).abs().max())
        raise ContractBroken(
            f"two passes in eval mode differ by {change:.3g}: draw no random numbers in eval mode"
        )


def check_batch_independent(spec: ModelSpec) -> None:
    """A sample's logits do not depend on the samples beside it."""
    images = torch.cat(
        [_images(count=6), torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE), _images(count=1).round()]
    )
    crowd = torch.cat([images, torch.ones(40, *SHAPE)])
    change = 0.0
    for seed in range(3):
        model = _build(spec, seed=seed)
        with torch.no_grad():
            alone = torch.cat([call_model(model, image[None], 10) for image in images])
            size = alone.abs().amax(1).clamp_min(1e-12)
            for batch in (images, crowd):
                together = call_model(model, batch, 10)[: len(images)]
                change = max(change, float(((alone - together).abs().amax(1) / size).max()))
    if change > BATCH_TOLERANCE:
        raise ContractBroken(
            f"logits alone and in a batch differ by {change:.2g} of their size: use no statistics over the "
            'batch and a fixed-grid solver, or state expected_failures={"batch_independent": reason}'
        )


def check_state_round_trip(spec: ModelSpec) -> None:
    """Weights saved and loaded into a fresh model give the same logits."""
    model, other = _build(spec, seed=0), _build(spec, seed=1)
    plain = {name: t.contiguous().clone() for name, t in model.state_dict().items()}
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
    "finite": check_finite,
    "logits": check_logits,
    "gradients": check_gradients,
    "deterministic": check_deterministic,
    "batch_independent": check_batch_independent,
    "state_round_trip": check_state_round_trip,
    "double_precision": check_double_precision,
    "tanh_field": check_tanh_field,
}


def check_audit(spec: ModelSpec, name: str) -> None:
    """One fast audit, on the untrained model and random images."""
    audit_names()  # registers them
    model, images = _build(spec), _images()
    context = Context(
        model=model.requires_grad_(False),
        images=images,
        labels=torch.arange(len(images)) % 10,
        num_classes=10,
        dataset="noise",
        spec=spec,
    )
    verdict = AUDITS.get(name)(context)
    if verdict.outcome == "flag":
        raise ContractBroken(verdict.sentence)
    if verdict.outcome == "not applicable":
        raise NothingToCheck(verdict.sentence)


def checks_for(spec: ModelSpec) -> dict[str, Callable[[ModelSpec], None]]:
    """The checks of one model: the common ones, one for each claim, and the audits in `UNTRAINED`."""
    claims = {f"claim:{claim}": partial(check_claim, claim=claim) for claim in sorted(spec.claims)}
    audits = {f"audit:{name}": partial(check_audit, name=name) for name in UNTRAINED}
    return {**CHECKS, **claims, **audits}


def check_model(spec: ModelSpec) -> Iterator[Result]:
    """Run every check of `spec`, yielding each result as it comes; an exception is a failure."""
    deadline = time.monotonic() + LIMIT
    for name, check in checks_for(spec).items():
        error = absent = None
        try:
            left = max(deadline - time.monotonic(), 0.1)
            with time_limit(left, f"check {name}", ", what was left of a minute for all checks"):
                check(spec)
        except NothingToCheck as nothing:
            absent = str(nothing)
        except RobustodeError as failure:
            error = one_line(failure, limit=400)
        except (Exception, SystemExit) as failure:
            error = f"{type(failure).__name__}: {one_line(failure)}"
        exempt = spec.expected_failures.get(name.removeprefix("audit:"))
        yield Result(check=name, error=error, exempt=exempt, absent=absent)
    names = [name for name in checks_for(spec) if not name.startswith("audit:")] + audit_names()
    for name in sorted(set(spec.expected_failures) - set(names)):
        known = ", ".join(names)
        yield Result(check=name, error=f"expected_failures names no such check (known: {known})")
