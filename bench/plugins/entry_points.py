"""Models that installed packages offer through the entry point group ``robustode.models``.

An entry point names a module whose import registers models with ``@register_model``, a factory, or a
`ModelSpec`. A package that fails to load is skipped with a one-line warning, and its models are removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

from ..._errors import InvalidArgument, one_line
from ...models import MODELS, ModelSpec
from ..runtime.foreign_code import importing

GROUP = "robustode.models"
_PACKAGE = __name__.partition(".")[0]
_plugins_loaded = False  # in this process


def load_plugins(warn: Callable[[str], None] = lambda line: None) -> None:
    """Register the models of every installed plug-in, once per process.

    Parameters
    ----------
    warn
        Called with one line for each plug-in that fails to load, in the first call of a process.
    """
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    try:
        found = sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.value, entry.name))
    except Exception as error:
        warn(f"plug-ins cannot be listed: {type(error).__name__}: {one_line(error)}")
        return
    for entry in dict.fromkeys(found):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown package"
        before = {spec.name: spec for spec in MODELS}
        try:
            with importing(f"plug-in {entry.name!r} of {package}"):
                _load(entry, package)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plug-in may call sys.exit
            for name in set(MODELS.names()) - before.keys():
                MODELS.unregister(name)
            warn(f"plug-in {entry.name!r} of {package} is skipped: {type(error).__name__}: {one_line(error)}")


def _load(entry: metadata.EntryPoint, package: str) -> None:
    """Import one entry point and mark its models as those of `package`."""
    before = set(MODELS.names())
    thing = entry.load()
    if isinstance(thing, ModelSpec):
        if not any((spec.name, spec.build) == (thing.name, thing.build) for spec in MODELS):
            MODELS.register(thing)
    elif callable(thing):
        if not any(spec.build is thing for spec in MODELS):
            MODELS.register(ModelSpec(name=entry.name, build=thing, summary=entry.value))
    elif not isinstance(thing, ModuleType):
        raise InvalidArgument(f"{entry.value} is not a module, factory or ModelSpec: {type(thing).__name__}")
    # A module that was imported before has registered its models already.
    prefix = f"{entry.module}."
    ours = [s for s in MODELS if s.name not in before or f"{s.build.__module__}.".startswith(prefix)]
    if not ours or prefix.startswith(f"{_PACKAGE}."):
        raise InvalidArgument(f"{entry.value} registers no model: decorate its factory with register_model")
    for spec in ours:
        MODELS.replace(dataclasses.replace(spec, plugin=package))
