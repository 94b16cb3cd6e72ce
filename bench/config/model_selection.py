"""The models of a preset: registered ones, its own variants of them, sweeps. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..._errors import InvalidArgument
from ..._registry import unknown_name
from ...models import MODELS, ModelSpec
from .preset import Preset


def variant_specs(preset: Preset) -> dict[str, ModelSpec]:
    """Return the specs of the preset's variants and sweeps, by name.

    Raises
    ------
    InvalidArgument
        For a variant with the name of a registered model.
    """
    found = {}
    for name, row in preset.all_variants().items():
        if name in MODELS.names():
            raise InvalidArgument(f"preset {preset.name}: {name!r} is a registered model: rename the variant")
        found[name] = MODELS.get(row.model).variant(name, row.hyperparameters, row.recipe)
    return found


def select_models(
    preset: Preset, names: Sequence[str], resolve: Callable[[str], ModelSpec] = MODELS.get
) -> list[ModelSpec]:
    """Resolve `names` under `preset`: its model, else all its variants of an architecture, else another.

    Parameters
    ----------
    resolve
        Finds the model of a ``FILE.py:factory``.
    """
    variants = variant_specs(preset)
    rows = {name: find_model(name, variants) for name in preset_models(preset)}
    chosen: dict[str, ModelSpec] = {}
    for name in names:
        ours = {row: spec for row, spec in rows.items() if name == row}
        ours = ours or {row: spec for row, spec in rows.items() if name == spec.architecture}
        if not ours:
            ours = {name: resolve(name) if ".py" in name else find_model(name, variants)}
        chosen |= {row: spec for row, spec in ours.items() if not _is_among(spec, chosen.values())}
    return list(chosen.values())


def _is_among(spec: ModelSpec, others: Iterable[ModelSpec]) -> bool:
    """Whether a file's model is there already, given in other words."""
    one = (spec.name, spec.folder, spec.file, spec.source)
    return spec.file is not None and one in ((s.name, s.folder, s.file, s.source) for s in others)


def find_model(name: str, variants: Mapping[str, ModelSpec]) -> ModelSpec:
    """Return the variant or registered model `name`; raises `UnknownName` with a suggestion."""
    if name in variants:
        return variants[name]
    if name not in MODELS.names():
        raise unknown_name("model", name, [*MODELS.names(), *variants])
    return MODELS.get(name)


def preset_models(preset: Preset) -> list[str]:
    """Return the names of the preset's models, then those of its sweeps."""
    named = [*MODELS.names(), *preset.variants] if preset.models == ["all"] else preset.models
    swept = [name for sweep in preset.sweeps for name in sweep.variants()]
    return list(dict.fromkeys([*named, *swept]))
