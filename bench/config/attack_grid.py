"""The threats of a preset, each configured and checked with its grid of strengths."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..._errors import InvalidArgument
from ...attacks import THREATS, Threat
from ...attacks.core.types import Norm
from ..records.record import REPLAYS
from .preset import Preset, ThreatPlan


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


def attack_norm(threat: Threat) -> Norm | None:
    """The norm whose worst case a threat takes part in; noise takes part in none, bounded or not."""
    return None if threat.family == "noise" else threat.norm


def plan_attacks(preset: Preset) -> tuple[Attack, ...]:
    """Configure and check every threat of `preset`.

    Raises
    ------
    InvalidArgument
        For names, parameters and strengths that cannot be run: all of them in one line.
    """
    attacks: list[Attack] = []
    wrong: list[str] = []
    for grid in preset.threats:
        try:
            attack = _attack(grid)
        except InvalidArgument as error:
            wrong.append(str(error))
            continue
        if any(attack.threat.name == other.threat.name for other in attacks):
            wrong.append(f"threat {grid.name} is listed twice: give it one grid")
        attacks.append(attack)
    for norm in ("linf", "l2"):
        if len({a.plan.reported for a in attacks if attack_norm(a.threat) == norm} - {None}) > 1:
            wrong.append(f"the attacks in {norm} report different strengths")
    if wrong:
        raise InvalidArgument(f"preset {preset.name}: {'; '.join(wrong)}")
    return tuple(attacks)


def _attack(grid: ThreatPlan) -> Attack:
    if grid.name in REPLAYS.values():
        raise InvalidArgument(
            f"{grid.name} is no attack: `transfer = true` replays the stored examples of other models"
        )
    threat = THREATS.get(grid.name).configure(**grid.parameters)
    for strength in (*grid.strengths, *([grid.reported] if grid.reported is not None else [])):
        threat.check_strength(strength)
    if grid.reported is not None and grid.reported not in grid.strengths:
        raise InvalidArgument(f"{grid.name}: reported = {grid.reported:g} is not among its strengths")
    if threat.grid_matters and grid.strengths != sorted(grid.strengths):
        raise InvalidArgument(f"{grid.name}: its strengths must ascend")
    if grid.samples_on_gpu is not None and (grid.samples or math.inf) > grid.samples_on_gpu:
        samples = "" if grid.samples is None else f" = {grid.samples}"
        raise InvalidArgument(
            f"{grid.name}: samples_on_gpu = {grid.samples_on_gpu} is fewer than samples{samples}"
        )
    return Attack(threat=threat, plan=grid)


def reported_strengths(attacks: Sequence[Attack]) -> dict[str, float]:
    """The strength that is reported of each norm that attacks have, and of each noise.

    Where none is named and all its threats have one and the same strength, it is that.
    """
    named: dict[str, set[float]] = defaultdict(set)
    asked: dict[str, set[float]] = defaultdict(set)
    for attack in attacks:
        key = attack_norm(attack.threat) or attack.threat.name
        if attack.threat.family != "clean" and attack.threat.protocol == "pixel":
            asked[key] |= set(attack.plan.strengths)
        named[key] |= set() if attack.plan.reported is None else {attack.plan.reported}
    found = {key: named[key] or asked[key] for key in named}
    return {key: min(values) for key, values in found.items() if len(values) == 1}


def ranked_by(preset: Preset, reported: Mapping[str, float]) -> str:
    """What the models of `preset` are ranked by, see `Preset`; raises where no strength is reported of it."""
    rank = preset.rank or next((name for name in ("linf", "l2", *reported) if name in reported), None)
    if rank is None:
        raise InvalidArgument(
            f"preset {preset.name}: no threat reports a strength: add `reported = ...` to one of them"
        )
    if rank not in reported:
        raise InvalidArgument(
            f"preset {preset.name}: rank = {rank!r} has no reported strength (known: {', '.join(reported)})"
        )
    return rank
