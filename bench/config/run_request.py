"""The arguments of a run, in a form that can be sent to another process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...models import ODEBackend, get_ode_backend
from ..data import Data, load_data
from ..plugins.entry_points import load_plugins
from ..plugins.model_file import load_files, load_registrations
from .model_selection import select_models
from .plan import Plan, make_plan
from .preset import Preset, TimeLimits
from .pretrained import PretrainedWeights


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A preset, the arguments that override it, and the folder of the data.

    Attributes
    ----------
    models
        Names, rows of the preset or ``FILE.py:factory``; None for the preset's own.
    load
        Files that register models, threats or datasets.
    seeds, data_root
        None for the preset's number and the default folder.
    batch_size
        Overrides the preset's; None for its own.
    batch_sizes
        Measured batch sizes by model, for "auto".
    networks
        Hashes of networks by model, see `Plan.network_sha256`: another process does not build these again.
    pretrained
        Weights to evaluate; None to train.
    time_limits
        Overrides the limits, which follow the estimate otherwise.
    ode_backend
        ``compiled`` or ``torchdiffeq``; by default that of the process that makes the request.
    """

    preset: Preset
    models: tuple[str, ...] | None = None
    load: tuple[Path, ...] = ()
    seeds: int | Sequence[int] | None = None
    data_root: Path | None = None
    batch_size: int | Literal["auto"] | None = None
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    networks: Mapping[str, str | None] = field(default_factory=dict)
    pretrained: PretrainedWeights | None = None
    time_limits: TimeLimits | None = None
    ode_backend: ODEBackend = field(default_factory=get_ode_backend)

    def plan(self) -> Plan:
        """Resolve every name; raises `InvalidArgument` for anything that cannot be run."""
        load_plugins()
        load_registrations(self.load)
        files = load_files([name for name in self.models or () if ".py" in name])
        models = select_models(self.preset, self.models, files.__getitem__) if self.models else None
        preset = self.preset
        if self.batch_size is not None:
            preset = preset.model_copy(update={"batch_size": self.batch_size})
        plan = make_plan(
            preset,
            models=models,
            seeds=self.seeds,
            pretrained=self.pretrained,
            time_limits=self.time_limits,
        )
        return dataclasses.replace(plan, batch_sizes=self.batch_sizes, networks=dict(self.networks))

    def data(self) -> Data:
        """Load the preset's dataset; raises `DataUnavailable` when it is neither stored nor downloadable."""
        return load_data(self.preset.dataset, self.data_root)
