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
from ...attacks import THREATS, Threat
from ...attacks.core.types import Norm
from ...models import ModelSpec
from ..data import DATASETS, Data
from ..records.headline import Headline
from ..records.record import REPLAYS
from ..runtime.network_hash import network_sha256
from ..runtime.time_limit import time_limit
from .model_selection import find_model, preset_models, select_models, variant_specs
from .perturbation import training_threat
from .preset import Preset, Recipe, ThreatPlan, TimeLimits, first_line
from .pretrained import PRETRAINED_RECIPE, PretrainedWeights
from .training_seeds import chosen_seeds

MARGIN = 4.0
"""How many times its estimate a unit of work may take, where that is more than the preset's limit."""
BATCH_SIZE = 100
"""Batch size where "auto" has not measured one yet."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A configured threat and the preset's grid of strengths for it."""

    threat: Threat
    plan: ThreatPlan

    @property
    def queries(self) -> tuple[float, float]:
        """Forwards and backwards per sample and draw, the harness's own two predictions included.

        Of a threat that does its whole grid in one run: the share of one strength.
        """
        forwards, backwards = self.threat.queries(self.threat.parameters)
        share = 1 if self.threat.curve is None else len(self.plan.strengths)
        own = 1 if self.threat.family in ("clean", "noise") else 2
        return forwards / share + own, backwards / share


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
            raise InvalidArgument(f"recipe of {spec.name}: {first_line(error, Recipe)}") from None
        if recipe.name == PRETRAINED_RECIPE:
            raise InvalidArgument(
                f"recipe of {spec.name}: {PRETRAINED_RECIPE!r} is reserved for --weights: choose another name"
            )
        if recipe.perturb:
            training_threat(recipe.perturb)
        return recipe

    def headline(self) -> Headline:
        """What the report needs to know of the plan."""
        reported = {
            attack_norm(attack.threat) or attack.threat.name: attack.plan.reported
            for attack in self.attacks
            if attack.plan.reported is not None
        }
        preset = self.preset
        return Headline(
            preset=preset.name,
            title=preset.title,
            reported=reported,
            rank=preset.rank,
            audits=preset.audits,
        )


def attack_norm(threat: Threat) -> Norm | None:
    """The norm whose worst case a threat takes part in; noise takes part in none, bounded or not."""
    return None if threat.family == "noise" else threat.norm


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
    attacks: list[Attack] = []
    for grid in preset.threats:
        if grid.name in REPLAYS.values():
            raise InvalidArgument(
                f"preset {preset.name}: {grid.name} is no attack: `transfer = true` replays the stored "
                "examples of other models"
            )
        threat = THREATS.get(grid.name).configure(**grid.parameters)
        for strength in (*grid.strengths, *([grid.reported] if grid.reported is not None else [])):
            threat.check_strength(strength)
        if grid.reported is not None and grid.reported not in grid.strengths:
            raise InvalidArgument(
                f"preset {preset.name}: {grid.name}: reported = {grid.reported:g} is not among its strengths"
            )
        if threat.grid_matters and grid.strengths != sorted(set(grid.strengths)):
            raise InvalidArgument(f"preset {preset.name}: {grid.name}: its strengths must ascend")
        if grid.samples_on_gpu is not None and (grid.samples or math.inf) > grid.samples_on_gpu:
            raise InvalidArgument(
                f"preset {preset.name}: {grid.name}: samples_on_gpu = {grid.samples_on_gpu} is fewer than "
                f"samples{'' if grid.samples is None else f' = {grid.samples}'}"
            )
        if any(threat.name == attack.threat.name for attack in attacks):
            raise InvalidArgument(
                f"preset {preset.name}: threat {grid.name} is listed twice: give it one grid"
            )
        attacks.append(Attack(threat=threat, plan=grid))
    _check_reported(preset, attacks)
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
        attacks=tuple(attacks),
        pretrained=pretrained,
        time_limits=time_limits,
    )
    reported = plan.headline().reported
    if preset.rank not in reported:
        raise InvalidArgument(
            f"preset {preset.name}: rank = {preset.rank!r} has no reported strength "
            f"(known: {', '.join(reported)})"
        )
    for spec in (*specs, *variant_specs(preset).values()):
        plan.hyperparameters(spec)
        plan.recipe(spec)
    return plan


def _check_reported(preset: Preset, attacks: Sequence[Attack]) -> None:
    """Check that the attacks in a norm report one strength. One without ``reported`` serves others."""
    for norm in ("linf", "l2"):
        if len({a.plan.reported for a in attacks if attack_norm(a.threat) == norm} - {None}) > 1:
            raise InvalidArgument(f"preset {preset.name}: the attacks in {norm} report different strengths")
