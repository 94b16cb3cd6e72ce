"""The rows of a preset: registered models, its own variants of them, sweeps. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..._errors import InvalidArgument
from ..._registry import unknown_name
from ...models import MODELS, ModelSpec
from .preset import Preset


def variant_specs(preset: Preset) -> dict[str, ModelSpec]:
    """The specs of the preset's own rows, by name.

    Raises
    ------
    InvalidArgument
        For a row that is called like a registered model.
    """
    found = {}
    for name, row in preset.all_variants().items():
        if name in MODELS.names():
            raise InvalidArgument(f"preset {preset.name}: {name!r} is a registered model: rename the variant")
        found[name] = MODELS.get(row.model).variant(name, row.hyperparameters, row.recipe)
    return found


def choose_models(
    preset: Preset, names: Sequence[str], resolve: Callable[[str], ModelSpec] = MODELS.get
) -> list[ModelSpec]:
    """What `names` mean under `preset`: a row of it, else all its rows of an architecture, or other models.

    Parameters
    ----------
    resolve
        Finds a model that is no row of the preset.
    """
    variants = variant_specs(preset)
    rows = {name: find_model(name, variants) for name in row_names(preset)}
    chosen: dict[str, ModelSpec] = {}
    for name in names:
        ours = {row: spec for row, spec in rows.items() if name == row}
        ours = ours or {row: spec for row, spec in rows.items() if name == spec.architecture}
        if not ours:
            ours = {name: resolve(name) if ".py" in name else find_model(name, variants)}
        chosen |= ours
    return list(chosen.values())


def find_model(name: str, variants: Mapping[str, ModelSpec]) -> ModelSpec:
    """The variant or registered model called `name`; raises `UnknownName` with a suggestion."""
    if name in variants:
        return variants[name]
    if name not in MODELS.names():
        raise unknown_name("model", name, [*MODELS.names(), *variants])
    return MODELS.get(name)


def row_names(preset: Preset) -> list[str]:
    """What the preset runs: the models it names, then the rows of its sweeps."""
    named = [*MODELS.names(), *preset.variants] if preset.models == ["all"] else preset.models
    swept = [name for sweep in preset.sweeps for name in sweep.variants()]
    return list(dict.fromkeys([*named, *swept]))
