"""What a model is to the benchmark (`ModelSpec`), and the registry that models join by decoration."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from .._errors import InvalidArgument
from .._registry import Registry, check_name, unknown_name

CLAIMS: Mapping[str, str] = {
    "fixed_step": "every forward pass costs the same number of field evaluations",
    "hamiltonian": "the exact flow conserves the model's energy H along every layer",
    "contractive": "the exact flow brings any two states closer: its rate rho is positive",
}
"""What a model may say of itself; each claim is measured by the conformance suite."""


Build: TypeAlias = Callable[..., nn.Module]
"""``build(input_shape, num_classes, **hyperparameters)`` returns an untrained module.

`input_shape` is (C, H, W). The module maps images in [0, 1], shape (N, C, H, W), to logits, shape
(N, num_classes).
"""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One entry of the model registry.

    Attributes
    ----------
    name
        Lower-case identifier; safe in a path.
    build
        The factory, see `Build`.
    summary
        One sentence: the dynamics.
    reference
        The paper, with its identifier.
    hyperparameters
        Overrides of the defaults in the signature of `build`.
    recipe
        Overrides of the preset's training recipe that belong to the model itself (weight decay).
    claims
        Names from `CLAIMS`.
    expected_failures
        Conformance checks and audits that this model is known to fail, each with its reason.
    version
        Raise it by hand when the algorithm changes: stored records of older versions are not reused.
    source
        Hash of the file of a model that lives outside the package; None inside.
    file
        ``net.py:build``, what such a model is called on the command line but for the folder.
    plugin
        Distribution and version of an installed plug-in, ``my-package 1.2``.
    variant_of
        Name of the entry that this one differs from in hyperparameters or recipe alone; None for an entry.
    """

    name: str
    build: Build
    summary: str = ""
    reference: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    claims: frozenset[str] = frozenset()
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    version: int = 1
    source: str | None = None
    file: str | None = None
    plugin: str | None = None
    variant_of: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "model")
        for claim in self.claims:
            if claim not in CLAIMS:
                raise unknown_name("claim", claim, sorted(CLAIMS))

    @property
    def full_version(self) -> str:
        """The hand-raised version, with the file's hash or the plug-in's for a model outside the package."""
        parts = [str(self.version), (self.source or "")[:12], (self.plugin or "").replace(" ", "-")]
        return "+".join(part for part in parts if part)

    @property
    def architecture(self) -> str:
        """The name in the registry: its own, or that of the entry it is a variant of."""
        return self.variant_of or self.name

    def variant(self, name: str, hyperparameters: Mapping[str, Any], recipe: Mapping[str, Any]) -> ModelSpec:
        """The same model under another name, with `hyperparameters` and `recipe` over its own."""
        return dataclasses.replace(
            self,
            name=name,
            hyperparameters={**self.hyperparameters, **hyperparameters},
            recipe={**self.recipe, **recipe},
            variant_of=self.architecture,
        )

    def resolve(self, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return every hyperparameter: signature defaults, then the spec's, then `overrides`.

        Raises
        ------
        InvalidArgument
            For a name that `build` does not take, or a value that JSON cannot hold.
        """
        signature = inspect.signature(self.build)
        parameters = list(signature.parameters.values())[2:]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        values = {p.name: p.default for p in parameters if p.default is not p.empty}
        for name, value in {**self.hyperparameters, **(overrides or {})}.items():
            if name not in values and not open_ended:
                raise unknown_name(f"hyperparameter of {self.name}", name, sorted(values))
            values[name] = value
        try:
            json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                f"model {self.name}: hyperparameters cannot be recorded ({error}): use finite numbers, "
                "strings, booleans, None, and lists of these"
            ) from None
        return values


MODELS: Registry[ModelSpec] = Registry("model")


def register_model(name: str, **attributes: Any) -> Callable[[Build], Build]:
    """Register the decorated factory as the model `name`; `attributes` are those of `ModelSpec`.

    A file that is imported a second time, by its path after its name say, takes the place of its own model.

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
    """Whether two functions are one definition in one file, which was imported under two names.

    Two that one decorator returned are not told apart.
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
