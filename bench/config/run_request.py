"""What was asked for on the command line, in a form that another process can be handed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...models import ODEBackend, get_ode_backend
from ..data import Data, load_data
from ..plugins.entry_points import load_plugins
from ..plugins.model_file import resolve_model
from .model_selection import choose_models
from .plan import Plan, make_plan
from .preset import Preset
from .pretrained import Given


@dataclass(frozen=True, kw_only=True)
class Request:
    """A preset, what the arguments put in its place, and where the data lie.

    Attributes
    ----------
    models
        Names, rows of the preset or ``FILE.py:factory``; None for the preset's own.
    seeds, data_root
        None for the preset's number and the default folder.
    batch_size
        Over the preset's; None for its own.
    batch_sizes
        By model, what was measured for "auto".
    given
        Weights to evaluate; None to train.
    ode_backend
        ``compiled`` or ``torchdiffeq``; by default that of the process that makes the request.
    """

    preset: Preset
    models: tuple[str, ...] | None = None
    seeds: int | None = None
    data_root: Path | None = None
    batch_size: int | Literal["auto"] | None = None
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    given: Given | None = None
    ode_backend: ODEBackend = field(default_factory=get_ode_backend)

    def plan(self) -> Plan:
        """Resolve every name; raises `InvalidArgument` for anything that cannot be run."""
        load_plugins()
        models = choose_models(self.preset, self.models, resolve_model) if self.models else None
        preset = self.preset
        if self.batch_size is not None:
            preset = preset.model_copy(update={"batch_size": self.batch_size})
        plan = make_plan(preset, models=models, seeds=self.seeds, given=self.given)
        return dataclasses.replace(plan, batch_sizes=self.batch_sizes)

    def data(self) -> Data:
        """Load the preset's dataset; raises `DataUnavailable` where it is not to be had."""
        return load_data(self.preset.dataset, self.data_root)
