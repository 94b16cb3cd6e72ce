"""Preset and arguments become a plan: every name is resolved, every value checked.

Nothing is trained or stored here. A model that is not of this package is built for the hash of its network.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from ..._errors import InvalidArgument
from ...models import ModelSpec
from ..data import DATASETS, Data
from ..records.headline import Headline
from ..runtime.network_hash import network_sha256
from ..runtime.time_limit import time_limit
from .attack_grid import Attack, plan_attacks, ranked_by, reported_strengths
from .model_selection import find_model, preset_models, select_models, variant_specs
from .perturbation import training_threat
from .preset import Preset, Recipe, TimeLimits
from .preset_mistakes import mistakes
from .pretrained import PRETRAINED_RECIPE, PretrainedWeights
from .training_seeds import chosen_seeds

MARGIN = 4.0
"""How many times its estimate a unit of work may take, where that is more than the preset's limit."""
BATCH_SIZE = 100
"""Batch size where "auto" has not measured one yet."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run will do, with every name resolved and every value checked.

    Attributes
    ----------
    specs
        The models.
    seeds
        The training seeds, ascending.
    fewer
        Of models that are trained from seeds 0 .. n - 1 alone: n, by name.
    attacks
        The threats with their grids.
    batch_sizes
        Measured batch sizes by model, where the preset says "auto".
    pretrained
        Weights to evaluate instead of training; None to train.
    time_limits
        What the user has set instead of the preset's limits; None where limits follow the estimate.
    networks
        Hashes of the networks that were built so far, by model; None of one that cannot be built.
    """

    preset: Preset
    specs: tuple[ModelSpec, ...]
    seeds: tuple[int, ...]
    fewer: Mapping[str, int] = field(default_factory=dict)
    attacks: tuple[Attack, ...]
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    pretrained: PretrainedWeights | None = None
    time_limits: TimeLimits | None = None
    networks: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def limits(self) -> TimeLimits:
        """The seconds that the user has set, or at least those that a unit of work may take."""
        return self.time_limits or self.preset.time_limit

    def allowed(self, least: float, estimate: float) -> float:
        """Seconds that a unit of work may take: `least`, or several times its `estimate` where that is more.

        What the user has set stays.
        """
        return least if self.time_limits else max(least, MARGIN * estimate)

    def batch_size(self, model: str) -> int:
        """Batch size of `model` for threats without one of their own."""
        size = self.preset.batch_size
        return self.batch_sizes.get(model, BATCH_SIZE) if size == "auto" else size

    def seeds_of(self, spec: ModelSpec) -> tuple[int, ...]:
        """The training seeds of `spec`."""
        return tuple(seed for seed in self.seeds if seed < self.fewer.get(spec.name, math.inf))

    @property
    def model_runs(self) -> list[tuple[ModelSpec, int]]:
        """Every pair of model and training seed; the first seed of all models comes first."""
        return [(s, seed) for seed in self.seeds for s in self.specs if seed in self.seeds_of(s)]

    def hyperparameters(self, spec: ModelSpec) -> dict[str, object]:
        """Every hyperparameter of `spec` under this preset, as records hold them."""
        override = self.preset.overrides.get(spec.name)
        return spec.recorded(override.hyperparameters if override else None)

    def arguments(self, spec: ModelSpec) -> dict[str, object]:
        """What the factory of `spec` is called with under this preset."""
        return spec.arguments(self.hyperparameters(spec))

    def network_sha256(self, spec: ModelSpec, data: Data) -> str | None:
        """Hash of the network that `spec` builds, see `network_hash`; None for a model of this package.

        It is built once in a plan. None too where it cannot be built, which its training will say.

        Raises
        ------
        InvalidArgument
            When its factory draws from a generator that nobody seeds.
        """
        if spec.in_package:
            return None
        if spec.name not in self.networks:
            self.networks[spec.name] = None
            arguments = self.arguments(spec)
            try:
                with time_limit(self.limits.training, f"building {spec.name}"):
                    self.networks[spec.name] = network_sha256(
                        spec, data.input_shape, data.num_classes, arguments
                    )
            except InvalidArgument:
                raise
            except Exception:  # its training says why
                self.networks[spec.name] = None
        return self.networks[spec.name]

    def recipe(self, spec: ModelSpec) -> Recipe:
        """The preset's recipe, overridden by the model's own, then by the preset's for this model."""
        override = self.preset.overrides.get(spec.name)
        body = {**self.preset.recipe.model_dump(), **spec.recipe, **(override.recipe if override else {})}
        try:
            recipe = Recipe.model_validate(body)
        except ValidationError as error:
            raise InvalidArgument(f"recipe of {spec.name}: {mistakes(error, Recipe)}") from None
        if recipe.name == PRETRAINED_RECIPE:
            raise InvalidArgument(
                f"recipe of {spec.name}: {PRETRAINED_RECIPE!r} is reserved for --weights: choose another name"
            )
        if recipe.perturb:
            training_threat(recipe.perturb)
        return recipe

    def headline(self) -> Headline:
        """What the report needs to know of the plan."""
        preset, reported = self.preset, reported_strengths(self.attacks)
        return Headline(
            preset=preset.name,
            title=preset.title,
            reported=reported,
            rank=ranked_by(preset, reported),
            audits=preset.audits,
        )


def make_plan(
    preset: Preset,
    *,
    models: Sequence[ModelSpec] | None = None,
    seeds: int | Sequence[int] | None = None,
    pretrained: PretrainedWeights | None = None,
    time_limits: TimeLimits | None = None,
) -> Plan:
    """Resolve every name and check every value of `preset`, with `models` and `seeds` over it.

    `seeds` are training seeds 0 .. seeds - 1, or those named. `pretrained` weights need one model and seed.

    Raises
    ------
    InvalidArgument
        For anything that cannot be run, before anything is done.
    """
    DATASETS.get(preset.dataset)
    specs = tuple(models) if models is not None else tuple(select_models(preset, preset_models(preset)))
    asked = chosen_seeds(seeds)
    for name in preset.overrides:
        if name not in preset.all_variants():
            find_model(name, variant_specs(preset))
    attacks = plan_attacks(preset)
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    if twice:
        raise InvalidArgument(f"two models are called {twice[0]!r}: rename one of the factories or files")
    if pretrained and (len(specs) != 1 or len(asked or (0,)) != 1):
        what = (
            f"these are {len(specs)} models"
            if len(specs) != 1
            else f"not seeds {', '.join(map(str, asked or ()))}"
        )
        raise InvalidArgument(f"--weights belong to one model and one seed, {what}: name one with --models")
    chosen = asked or tuple(range(1 if pretrained else preset.seeds))
    rows = {**preset.overrides, **preset.all_variants()} if seeds is None else {}
    fewer = {name: row.seeds for name, row in rows.items() if row.seeds is not None}
    plan = Plan(
        preset=preset,
        specs=specs,
        seeds=chosen,
        fewer=fewer,
        attacks=attacks,
        pretrained=pretrained,
        time_limits=time_limits,
    )
    plan.headline()
    for spec in (*specs, *variant_specs(preset).values()):
        plan.hyperparameters(spec)
        plan.recipe(spec)
    return plan
