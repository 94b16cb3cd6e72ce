"""Names such as ``torchattacks:MIFGSM`` or ``torchattacks:APGD-l2``, and the threats that they are."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module, metadata
from types import ModuleType
from typing import get_args

from ..._errors import InvalidArgument, one_line
from ..._registry import unknown_name
from ..core.threat import Threat
from ..core.types import Norm
from .library_attack import make_threat

LIBRARIES = {
    "torchattacks": ("torchattacks", "pip install 'torchattacks>=3.5.1,<4'"),
    "foolbox": ("foolbox", "pip install 'foolbox>=3.3,<4'"),
    "adv_lib": ("adv-lib", "pip install --no-deps adv-lib==0.2.8"),
}
"""Their names here; as what they are installed, and how."""

_found: dict[str, Threat] = {}


def library_threat(name: str) -> Threat:
    """The threat ``LIBRARY:ATTACK``, or ``LIBRARY:ATTACK-linf`` or ``-l2`` for one of several norms.

    Raises
    ------
    UnknownName, InvalidArgument
        For a library that is not known or not installed, and for an attack or norm that it does not have.
    """
    if name not in _found:
        _found[name] = _find(name)
    return _found[name]


def installed_attacks() -> dict[str, list[str]]:
    """The names of all attacks of each library that is installed."""
    found = {}
    for library, (package, _) in LIBRARIES.items():
        try:
            metadata.version(package)
            found[library] = _module(library).names()
        except (metadata.PackageNotFoundError, InvalidArgument):
            continue
    return found


def _find(name: str) -> Threat:
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        raise unknown_name("library of attacks", library, list(LIBRARIES))
    module = _module(library)
    wanted: Norm | None = None
    for norm in get_args(Norm):
        if rest.endswith(f"-{norm}"):
            wanted, rest = norm, rest.removesuffix(f"-{norm}")
    if (why := module.reason(rest)) is not None:
        raise InvalidArgument(f"threat {name}: {rest} is no threat by itself: {why}")
    if rest not in module.names():
        raise unknown_name(f"attack of {library}", rest, module.names())
    attack = module.find(rest)
    if wanted is not None and wanted not in attack.norms:
        have = " and ".join(attack.norms) or "no norm"
        raise InvalidArgument(f"threat {name}: {rest} has {have} alone")
    norm = wanted or (attack.norms[0] if attack.norms else None)
    return make_threat(name, attack, norm, version=metadata.version(LIBRARIES[library][0]))


def _module(library: str) -> ModuleType:
    path = list(sys.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's imports
            return import_module(f".{library}_library", __package__)
    except ImportError as error:
        raise InvalidArgument(
            f"{library} cannot be imported ({one_line(error)}): {LIBRARIES[library][1]}"
        ) from None
    finally:
        sys.path[:] = path  # setuptools adds to it where distutils is imported
