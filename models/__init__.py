"""Model architectures, one file per registered model, and the ODE blocks that they are built from.

Every file of this folder that registers a model is part of the benchmark, without any other edit.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .ode.backend import (
    ODE_BACKENDS,
    ODEBackend,
    get_ode_backend,
    set_ode_backend,
    use_ode_backend,
)
from .ode.block import ODEBlock, ode_blocks
from .ode.field_agreement import check_field_agreement
from .ode.kernels.fixed_step import flow_implementation
from .ode.lipschitz import LipschitzParts, NoCertificate, convolution_bound
from .ode.solver import CheckedField, Field, Solver, SolverFailure, StepMap
from .ode.stated_bounds import check_stated_bounds
from .ode.statement import stated_lipschitz_parts
from .ode.tanh_field import MatrixField, TanhField
from .pixel_network import Normalise, PixelNetwork
from .registry import CLAIMS, MODELS, ModelSpec, register_model

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
    import_module(f".{_module}", __name__)

__all__ = [
    "CLAIMS",
    "MODELS",
    "ODE_BACKENDS",
    "CheckedField",
    "Field",
    "LipschitzParts",
    "MatrixField",
    "ModelSpec",
    "NoCertificate",
    "Normalise",
    "ODEBackend",
    "ODEBlock",
    "PixelNetwork",
    "Solver",
    "SolverFailure",
    "StepMap",
    "TanhField",
    "check_field_agreement",
    "check_stated_bounds",
    "convolution_bound",
    "flow_implementation",
    "get_ode_backend",
    "ode_blocks",
    "register_model",
    "set_ode_backend",
    "stated_lipschitz_parts",
    "use_ode_backend",
]
