"""What was asked for on the command line, in a form that another process can be handed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .data import Data, load_data
from .external import resolve_model
from .given import Given
from .plan import Plan, make_plan
from .plugins import load_plugins
from .preset import Preset
from .rows import choose_models


@dataclass(frozen=True, kw_only=True)
class Request:
    """A preset, what the arguments put in its place, and where the data lie.

    Attributes
    ----------
    models
        Names, rows of the preset or ``FILE.py:factory``; None for the preset's own.
    seeds, data_root
        None for the preset's number and the default folder.
    given
        Weights to evaluate; None to train.
    """

    preset: Preset
    models: tuple[str, ...] | None = None
    seeds: int | None = None
    data_root: Path | None = None
    given: Given | None = None

    def plan(self) -> Plan:
        """Resolve every name; raises `InvalidArgument` for anything that cannot be run."""
        load_plugins()
        models = choose_models(self.preset, self.models, resolve_model) if self.models else None
        return make_plan(self.preset, models=models, seeds=self.seeds, given=self.given)

    def data(self) -> Data:
        """Load the preset's dataset; raises `DataUnavailable` where it is not to be had."""
        return load_data(self.preset.dataset, self.data_root)
