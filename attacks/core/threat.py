"""What a threat is to the benchmark: how it perturbs images, in which norm, and what it may cost."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..._arguments import Count, Flag, Number, Positive, Real, Whole, check_fields, check_value, plain
from ..._errors import AttackFailure, InvalidArgument, RobustodeError, one_line
from ..._registry import check_name, unknown_name
from .memory import out_of_memory
from .model_call import NO_GRAPH, where
from .types import Family, Model, Norm, Seed

Craft: TypeAlias = Callable[..., Tensor]
"""``craft(model, images, labels, strength, seed, **parameters)`` returns perturbed images.

`images` (N, C, H, W) in [0, 1], `labels` (N,) int64, `strength` in pixel units; the result has the
shape of `images`.
"""

CraftCurve: TypeAlias = Callable[..., Tensor]
"""``curve(model, images, labels, strengths, reported, seed, **parameters)`` returns perturbed images for
each of the ascending positive `strengths`, (S, N, C, H, W); those that are `reported` deserve most effort.
"""

_LIBRARY_NAME = re.compile(r"(torchattacks|foolbox|adv_lib):[A-Za-z0-9_-]{1,50}")
"""What threats of other libraries are called (`attacks.libraries`)."""

Closest: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""``closest(model, images, labels, seed, **parameters)`` returns the closest adversarial images found and
their distances, float64 (N,): 0 for a sample misclassified as it is, infinity (and the unperturbed image)
where none was found.
"""


@dataclass(frozen=True, kw_only=True)
class Threat:
    """One way to perturb images. Its strength stays outside, so a curve over strengths is data.

    Attributes
    ----------
    family
        ``clean``, ``noise``, ``gradient`` (attacks that differentiate the model), ``search`` (attacks that
        only ask it) or ``transfer`` (attacks on surrogates of it). Everything but the first two is an attack.
    norm
        The norm that bounds the perturbation by the strength; None for unbounded noise.
    craft
        See `Craft`.
    closest
        See `Closest`; only a minimal-norm threat has it.
    curve
        See `CraftCurve`; a threat that has it does a whole grid of strengths in one run.
    pooled
        Whether each sample is attacked independently of the others in its batch: samples of several batches
        are then attacked together, and the model is queried one batch at a time.
    optional_early_stopping
        Whether `craft` takes ``early_stopping=False``, and then attacks a sample to the end of the run that
        broke it: for images to train on, or to be scored on another model.
    grid_matters
        Whether what `curve` finds at one strength depends on the other strengths and on what is reported.
    parameters
        What `craft` is called with besides the strength.
    strength_name
        The strength's symbol on an axis: sigma, amount, radius, eps.
    max_strength
        The largest strength that has a meaning.
    stochastic
        Whether several draws differ. A stochastic threat is seeded per sample.
    needs_gradient
        Whether the model must be differentiable.
    crafted_on
        What `craft` is handed: the ``model`` itself, or one after the other the surrogates of it that solve
        the flow of the same weights in other ways (``solvers``), whose examples are scored on the model.
    queries
        Forwards and backwards per sample for the parameters, for time estimates: exact for a sample that
        is never broken. Through surrogates, those of one of them.
    protocol
        In which space strengths are measured and images clipped: ``pixel`` unless a paper does otherwise.
    box
        The smallest and largest pixel value that a perturbed image may hold.
    any_parameter_values
        Whether a parameter may be a number that is not positive: whoever runs the attack checks it. Else
        numbers must be positive.
    version
        Raise it by hand when the algorithm changes: stored records of older versions are not reused.
    """

    name: str
    family: Family
    craft: Craft
    closest: Closest | None = None
    curve: CraftCurve | None = None
    pooled: Flag = False
    optional_early_stopping: Flag = False
    grid_matters: Flag = False
    norm: Norm | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    any_parameter_values: Flag = False
    strength_name: str = "strength"
    max_strength: Number = math.inf
    stochastic: Flag = False
    needs_gradient: Flag = False
    crafted_on: Literal["model", "solvers"] = "model"
    queries: Callable[[Mapping[str, Any]], tuple[int, int]] = lambda _: (0, 0)
    protocol: str = "pixel"
    box: tuple[Number, Number] = (0.0, 1.0)
    reference: str = ""
    version: Count = 1

    def __post_init__(self) -> None:
        if not _LIBRARY_NAME.fullmatch(self.name):
            check_name(self.name, "threat")
        if self.family not in get_args(Family):
            raise unknown_name("family of threats", self.family, list(get_args(Family)))
        check_fields(self, f"threat {self.name}")

    @property
    def minimal(self) -> bool:
        """Whether it looks for the closest adversarial image, so that one run gives a whole curve."""
        return self.closest is not None

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        strength: float,
        seed: Seed,
        *,
        early_stopping: bool = True,
    ) -> Tensor:
        """Perturb `images` with this threat's parameters; strength 0 leaves them, box permitting.

        With ``early_stopping=False`` a threat of `optional_early_stopping` goes on with broken samples.
        """
        strength, images = self.check_strength(strength), images.contiguous()
        if not len(images) or (strength == 0 and self.box == (0.0, 1.0)):
            return images.clone()
        options = {"early_stopping": False} if self.optional_early_stopping and not early_stopping else {}
        with self._failures_named():
            found = self.craft(model, images, labels, strength, seed, **options, **self.parameters)
        if not isinstance(found, Tensor):
            raise AttackFailure(
                f"threat {self.name} returned {type(found).__name__}, not images{defined_at(self.craft)}"
            )
        return found

    def perturb_at_strengths(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        strengths: Sequence[float],
        reported: Sequence[float],
        seed: Seed,
    ) -> Tensor:
        """Perturb `images` (N, C, H, W) at each of the ascending `strengths`, in one run: (S, N, C, H, W).

        Raises
        ------
        InvalidArgument
            When this threat has no `curve`, or the strengths do not ascend.
        """
        if self.curve is None:
            raise InvalidArgument(f"threat {self.name} does one strength at a time")
        if list(strengths) != sorted({self.check_strength(strength) for strength in strengths}):
            raise InvalidArgument(f"threat {self.name}: strengths must ascend, not {list(strengths)}")
        images = images.contiguous()
        positive = [strength for strength in strengths if strength > 0]
        same = images.expand(len(strengths) - (len(positive) if len(images) else 0), *images.shape)
        if not positive or not len(images):
            return same.clone()
        with self._failures_named():
            found = self.curve(model, images, labels, positive, reported, seed, **self.parameters)
        return torch.cat([same, found])

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Say of what a threat that is not of this package raises that it is its failure, and where.

        Not of what runs out of memory, which is done again in smaller batches.
        """
        try:
            yield
        except Exception as error:
            ours = module_of(self.craft).startswith(__name__.partition(".")[0] + ".")
            known = isinstance(error, RobustodeError | MemoryError) or out_of_memory(error)
            if known or (ours and ":" not in self.name):
                raise
            advice = ""
            if NO_GRAPH in str(error) and not self.needs_gradient:
                advice = ": register the threat with needs_gradient=True"
            raise AttackFailure(
                f"threat {self.name} raised {type(error).__name__}: {one_line(error)}{where(error)}{advice}"
            ) from error

    def check_strength(self, strength: float) -> float:
        """Return `strength`; raise `InvalidArgument` when it is negative, not finite or too large.

        In L-infinity more than 1, the whole range of a pixel, is taken for a mistake of units.
        """
        strength = check_value(f"threat {self.name}: {self.strength_name}", strength, Number)
        in_pixels = self.norm == "linf" and self.protocol == "pixel"
        most = min(self.max_strength, 1.0) if in_pixels else self.max_strength
        if not (math.isfinite(strength) and 0 <= strength <= most):
            upper = "" if math.isinf(most) else f" and at most {most:g}"
            hint = f" (pixels lie in [0, 1]: 8/255 is {8 / 255:.4f})" if in_pixels and strength > 1 else ""
            raise InvalidArgument(
                f"threat {self.name}: {self.strength_name} must be at least 0{upper}, not {strength:g}{hint}"
            )
        return strength

    def configure(self, **overrides: Any) -> Threat:
        """Return this threat with other parameters, each of the present one's type; numbers are positive.

        Raises
        ------
        UnknownName
            For a parameter that it does not take.
        InvalidArgument
            For a value of another type, or a number that is not positive.
        """
        for name, value in overrides.items():
            if name not in self.parameters:
                raise unknown_name(f"parameter of threat {self.name}", name, sorted(self.parameters))
            if value is None and self.any_parameter_values:
                continue
            kind = _kind_of(self.parameters[name], positive=not self.any_parameter_values)
            overrides[name] = check_value(f"threat {self.name}: {name}", value, kind)
        return dataclasses.replace(self, parameters={**self.parameters, **overrides})


def _kind_of(default: Any, *, positive: bool) -> Any:
    """What may take the place of a parameter's default."""
    kinds: dict[type, Any] = {bool: Flag, str: str}
    kinds |= {int: Count, float: Positive} if positive else {int: Whole, float: Real}
    return kinds.get(type(plain(default)), Any)


def defined_at(function: Callable[..., Any]) -> str:
    """Where a function is defined, as `` (mine.py:12)``; empty for what has no code of its own."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code is not None else ""


def module_of(function: Callable[..., Any]) -> str:
    """The module that a function, or what `functools.partial` made of one, was written in."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__module__", ""))
