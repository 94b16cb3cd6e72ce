"""`ModelSpec`, the description of a model, and the registry that `register_model` adds models to."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from .._arguments import Count, Names, check_fields
from .._errors import InvalidArgument
from .._registry import Registry, check_name, unknown_name
from .hyperparameters import Hyperparameters

CLAIMS: Mapping[str, str] = {
    "fixed_step": "every forward pass costs the same number of field evaluations",
    "hamiltonian": "the exact flow conserves the model's energy H along every layer",
    "contractive": "the exact flow brings any two states closer: its rate rho is positive",
    "no_ode": "a forward pass solves no ODE, by a library or by steps of its own",
}
"""Properties that a model may claim, with their meaning; `robustode check` measures each of them."""


Build: TypeAlias = Callable[..., nn.Module]
"""A factory ``build(input_shape, num_classes, **hyperparameters)`` that returns an untrained module.

`input_shape` is (C, H, W). The module maps images in [0, 1], shape (N, C, H, W), to logits, shape
(N, num_classes).
"""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that the benchmark knows of a model before it is built.

    Attributes
    ----------
    name
        1 to 64 characters from ``a-z 0-9 . _ -``, the first a letter or digit; unique in the registry.
    build
        ``build(input_shape, num_classes, **hyperparameters)`` returns an untrained ``nn.Module``, which maps
        images in [0, 1], shape (N, C, H, W), to logits, shape (N, num_classes); `input_shape` is (C, H, W).
    summary
        The dynamics, in one sentence.
    reference
        The paper, with its arXiv number or DOI.
    hyperparameters
        Overrides of the defaults in the signature of `build`.
    recipe
        Overrides of the preset's training recipe for this model, such as ``{"weight_decay": 2e-4}``.
    claims
        Properties that are measured by `robustode check` and by audits: ``fixed_step``, ``hamiltonian``,
        ``contractive``; and ``no_ode`` of a model whose audits need not look for a solver.
    expected_failures
        Conformance checks and audits that this model is known to fail, each with the reason. One name serves
        both; ``-`` and ``_`` are the same in it.
    version
        Raised by hand when the algorithm changes: stored records of older versions are not reused.
    source
        SHA-256 of `sources`: the file of a model outside the package, and every module that it imports and
        that is not installed; None inside.
    file
        ``net.py:build`` for a model from a file; None inside the package.
    folder
        Folder of that file.
    plugin
        Distribution and version of an installed plug-in, such as ``my-package 1.2``.
    variant_of
        Name of the registered model that this one differs from in hyperparameters or recipe; None for a
        registered model.

    Raises
    ------
    InvalidArgument
        For a name that is not allowed.
    UnknownName
        For an unknown claim; the message suggests the nearest ones.
    """

    name: str
    build: Build
    summary: str = ""
    reference: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    claims: Names = frozenset()
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    version: Count = 1
    source: str | None = None
    file: str | None = None
    folder: Path | None = None
    sources: tuple[Path, ...] = ()
    plugin: str | None = None
    variant_of: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "model")
        check_fields(self, f"model {self.name}")
        expected = {_dashed(name): reason for name, reason in self.expected_failures.items()}
        object.__setattr__(self, "expected_failures", expected)
        for claim in self.claims:
            if claim not in CLAIMS:
                raise unknown_name("claim", claim, sorted(CLAIMS))

    @property
    def full_version(self) -> str:
        """`version`, followed for a model outside the package by its file's hash or its plug-in's version."""
        parts = [str(self.version), (self.source or "")[:12], (self.plugin or "").replace(" ", "-")]
        return "+".join(part for part in parts if part)

    @property
    def in_package(self) -> bool:
        """Whether it is a model of this package, whose `version` is all there is to know of its code."""
        module = str(getattr(inspect.unwrap(self.build), "__module__", ""))
        own = module.startswith(f"{__name__.partition('.')[0]}.")
        return own and self.source is None and self.plugin is None

    @property
    def architecture(self) -> str:
        """Name of the registered model: its own, or that of the model it is a variant of."""
        return self.variant_of or self.name

    def variant(self, name: str, hyperparameters: Mapping[str, Any], recipe: Mapping[str, Any]) -> ModelSpec:
        """Return the same model under another name, with `hyperparameters` and `recipe` over its own."""
        return dataclasses.replace(
            self,
            name=name,
            hyperparameters={**self.hyperparameters, **hyperparameters},
            recipe={**self.recipe, **recipe},
            variant_of=self.architecture,
        )

    def resolve(self, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return every hyperparameter: signature defaults, then the spec's, then `overrides`.

        A list or text becomes what the default is, such as a tuple or a member of an enumeration.

        Raises
        ------
        InvalidArgument
            For a name that `build` does not take, or a value that a record cannot hold.
        """
        return self._hyperparameters().resolve(overrides or {})

    def recorded(self, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what `resolve` returns as a record holds it: JSON, see `recorded_values`."""
        return self._hyperparameters().record(self.resolve(overrides))

    def arguments(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of `build` that a record holds: the call that it was made from.

        Raises
        ------
        InvalidArgument
            When a value cannot be had again, such as a function that the model no longer names.
        """
        return self._hyperparameters().arguments(recorded)

    def _hyperparameters(self) -> Hyperparameters:
        return Hyperparameters(self.name, self.build, self.hyperparameters)


FORMER_CHECKS = {"batch-independent": "batch-independence"}
"""What checks were called once, with ``-`` for ``_``."""


def _dashed(name: str) -> str:
    """The present name of a check that `name` may spell with ``_`` or as it was called once."""
    if name.startswith("claim:"):
        return name
    name = name.replace("_", "-")
    return FORMER_CHECKS.get(name, name)


MODELS: Registry[ModelSpec] = Registry("model")
"""Every registered model, in order of registration."""


def register_model(name: str, **attributes: Any) -> Callable[[Build], Build]:
    """Register the decorated factory as a model of the benchmark.

    A file that is imported twice, for example by its path and by its module name, replaces its own model.

    Parameters
    ----------
    name
        As in `ModelSpec`; unique in the registry.
    **attributes
        Other attributes of `ModelSpec`: ``summary``, ``reference``, ``hyperparameters``, ``recipe``,
        ``claims``, ``expected_failures``, ``version``.

    Returns
    -------
    callable
        A decorator that returns the factory unchanged.

    Raises
    ------
    InvalidArgument
        For a name that is taken or not allowed, and when what is decorated is not callable.
    UnknownName
        For an unknown claim.

    Examples
    --------
    >>> @register_model("linear-example", summary="a linear classifier")
    ... def build(input_shape, num_classes):
    ...     return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
    >>> MODELS.get("linear-example").build is build
    True
    >>> MODELS.unregister("linear-example")
    """

    def decorate(build: Build) -> Build:
        if not callable(build):
            raise InvalidArgument(f"model {name!r}: register_model decorates a function, not {build!r}")
        spec = ModelSpec(name=name, build=build, **attributes)
        if name in MODELS and same_factory(MODELS.get(name).build, build):
            MODELS.replace(spec)
        else:
            MODELS.register(spec)
        return build

    return decorate


def same_factory(one: Build, other: Build) -> bool:
    """Whether two functions come from the same definition in the same file, imported under two names.

    Two functions that one decorator returned cannot be distinguished.
    """
    if one is other:
        return True
    places = {_place(one), _place(other)}
    return len(places) == 1 and None not in places


def _place(build: Build) -> tuple[Path, int, str] | None:
    """File, line and name of a function's definition; None for what has none in a file."""
    code = getattr(build, "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        return None
    return Path(code.co_filename).resolve(), code.co_firstlineno, code.co_name
