"""The architectures. Every file here that registers a model is part of the benchmark."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .ode.block import ODEBlock, count_nfe
from .ode.lipschitz import LipschitzParts, NoCertificate, convolution_bound
from .ode.solver import Solver, SolverFailure
from .ode.surrogates import solver_surrogates, with_solver
from .ode.tanh_field import TanhField
from .pixel_network import Normalise
from .registry import CLAIMS, MODELS, ModelSpec, register_model

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
    import_module(f".{_module}", __name__)

__all__ = [
    "CLAIMS",
    "MODELS",
    "LipschitzParts",
    "ModelSpec",
    "NoCertificate",
    "Normalise",
    "ODEBlock",
    "Solver",
    "SolverFailure",
    "TanhField",
    "convolution_bound",
    "count_nfe",
    "register_model",
    "solver_surrogates",
    "with_solver",
]
