"""robustode: the robustness benchmark for neural-ODE classifiers.

The public names are loaded on first use: importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import ForeignCodeWarning, InconsistentModelWarning, UntrainedModelWarning
    from .attacks import Threat, register_threat
    from .bench.api import evaluate, load_model
    from .bench.config.own_datasets import register_dataset, register_image_folder
    from .bench.data import load_data
    from .bench.report.frame_plot import plot
    from .bench.results_frame import load_results
    from .models import (
        LipschitzParts,
        MatrixField,
        ModelSpec,
        ODEBlock,
        PixelNetwork,
        Solver,
        TanhField,
        convolution_bound,
        register_model,
        use_ode_backend,
    )

__version__ = "0.2.0"

_HOME = {
    "ForeignCodeWarning": "_errors",
    "InconsistentModelWarning": "_errors",
    "UntrainedModelWarning": "_errors",
    "evaluate": "bench.api",
    "load_model": "bench.api",
    "load_data": "bench.data",
    "load_results": "bench.results_frame",
    "plot": "bench.report.frame_plot",
    "register_dataset": "bench.config.own_datasets",
    "register_image_folder": "bench.config.own_datasets",
    "LipschitzParts": "models",
    "MatrixField": "models",
    "ModelSpec": "models",
    "ODEBlock": "models",
    "PixelNetwork": "models",
    "Solver": "models",
    "TanhField": "models",
    "convolution_bound": "models",
    "register_model": "models",
    "use_ode_backend": "models",
    "Threat": "attacks",
    "register_threat": "attacks",
}

__all__ = [
    "ForeignCodeWarning",
    "InconsistentModelWarning",
    "LipschitzParts",
    "MatrixField",
    "ModelSpec",
    "ODEBlock",
    "PixelNetwork",
    "Solver",
    "TanhField",
    "Threat",
    "UntrainedModelWarning",
    "convolution_bound",
    "evaluate",
    "load_data",
    "load_model",
    "load_results",
    "plot",
    "register_dataset",
    "register_image_folder",
    "register_model",
    "register_threat",
    "use_ode_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
