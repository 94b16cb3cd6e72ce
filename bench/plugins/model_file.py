"""Models from any file: ``FILE.py:factory``, which may import modules beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..._errors import InvalidArgument, RobustodeError, one_line
from ...models import MODELS, ModelSpec
from ...models.registry import Build, same_factory
from ..runtime.foreign_code import importing
from ..runtime.opened_files import forget_reads
from .entry_points import load_plugins
from .file_source import source_files, source_sha256
from .own_imports import PREFIX, imports_from, share_later, still_imported
from .own_imports import forget as forget_imports

_imported_files: dict[str, set[str]] = {}  # by module name: the models that the file registered
_sources: dict[str, dict[Path, str]] = {}  # by module name: the files of its source, and their modules


def forget_model_files() -> None:
    """Forget every imported model file and the modules beside them; their models stay registered."""
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]
    _imported_files.clear()
    _sources.clear()
    forget_imports()


def resolve_model(name: str) -> ModelSpec:
    """Return the model called `name`: a registered one, or ``FILE.py:factory``."""
    if ".py" in name:
        return load_external(name)
    load_plugins()
    return MODELS.get(name)


def named_models(references: Sequence[str]) -> tuple[list[str], dict[str, ModelSpec]]:
    """Return the names of the models in `references`, and the specs of those that are ``FILE.py:factory``.

    The specs stand under their references.

    Raises
    ------
    InvalidArgument
        As `load_external`, and for two models of one name.
    """
    specs = load_files([reference for reference in references if ".py" in reference])
    places: dict[str, set[tuple[Path | None, str | None]]] = defaultdict(set)
    for spec in specs.values():
        places[spec.name].add((spec.folder, spec.file))
    for name, found in places.items():
        if len(found) > 1:
            raise InvalidArgument(f"two models are called {name!r}: name one of the files")
    return [specs[r].name if r in specs else r for r in references], specs


def load_external(reference: str) -> ModelSpec:
    """Load ``FILE.py:factory``, as the file and what it reads are now.

    The factory may be decorated with ``robustode.register_model``, which gives it a name, hyperparameters
    and claims, or be plain: then its own name, or that of its file, becomes the name of the model.

    Raises
    ------
    InvalidArgument
        When the file or the factory is missing, or the file cannot be imported.
    """
    return load_files([reference])[reference]


def load_files(references: Sequence[str]) -> dict[str, ModelSpec]:
    """Load models as `load_external` does, by reference; a file is imported once for all its models."""
    places = {reference: _place(reference) for reference in references}
    specs: dict[str, ModelSpec] = {}
    for path in dict.fromkeys(path for path, _ in places.values()):
        ours = {reference: factory for reference, (where, factory) in places.items() if where == path}
        module, known = _import_anew(path, next(iter(ours)))
        specs |= {
            reference: _spec(reference, module, factory, path, known) for reference, factory in ours.items()
        }
    return {reference: specs[reference] for reference in references}


def _place(reference: str) -> tuple[Path, str]:
    """The file and the name of the factory in ``FILE.py:factory``."""
    file, colon, factory = reference.rpartition(":")
    path = Path(file if colon else reference).expanduser().resolve()
    if not colon or not factory.isidentifier():
        raise InvalidArgument(
            f"model {reference!r}: write FILE.py:factory, naming the function that builds the model"
        )
    if not path.is_file():
        raise InvalidArgument(f"model {reference!r}: there is no file {path}")
    return path, factory


def _import_anew(path: Path, reference: str) -> tuple[ModuleType, set[str]]:
    """Import a file as it is now; its module, and the names of the models that were registered without it."""
    module_name = f"{PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    _forget(module_name, path.parent)
    known = set(MODELS.names())
    module = _import(path, module_name, reference)
    _imported_files[module_name] = set(MODELS.names()) - known
    return module, known


def _spec(reference: str, module: ModuleType, factory: str, path: Path, known: set[str]) -> ModelSpec:
    """The model that `factory` of an imported file builds; `known` names were registered without the file."""
    build = getattr(module, factory, None)
    if not callable(build):
        found = sorted(
            n
            for n, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", "") == module.__name__
        )
        functions = f"it has: {', '.join(found)}" if found else "it has none"
        raise InvalidArgument(f"model {reference!r}: {path.name} has no function {factory!r} ({functions})")
    # A factory that the file imports from elsewhere stays a model of its own.
    own = getattr(getattr(build, "__code__", None), "co_filename", None)
    here = own is not None and Path(own).resolve() == path
    registered = [s for s in MODELS if same_factory(s.build, build) and (here or s.name not in known)]
    registered = [s for s in registered if s.build is build] or registered
    if len(registered) > 1:
        names = ", ".join(s.name for s in registered)
        raise InvalidArgument(
            f"model {reference!r}: ambiguous: {names} were made by one decorator; import the file in one way "
            "only, by its path or by its module name"
        )
    if registered:
        (spec,) = registered
    else:
        spec = ModelSpec(name=_slug(factory, path), build=build, summary=f"{path.name}:{factory}")
        if spec.name in known:
            raise InvalidArgument(f"model {reference!r}: the name {spec.name!r} is taken: rename the factory")
    sources = _sources[module.__name__]
    return dataclasses.replace(
        spec,
        build=_importing_from(build, path.parent),
        source=source_sha256(path, sources),
        sources=tuple(sources),
        file=f"{path.name}:{factory}",
        folder=path.parent,
    )


def _forget(module_name: str, folder: Path) -> None:
    """Forget an earlier import of a file, its models and the modules beside it: what it reads may be new."""
    sys.modules.pop(module_name, None)
    forget_imports(folder)
    forget_reads(_sources.pop(module_name, ()), but=still_imported())
    for name in _imported_files.pop(module_name, set()):
        MODELS.unregister(name)


def _import(path: Path, module_name: str, reference: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"model {reference!r}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    names = set(MODELS.names())
    sys.modules[module_name] = module
    try:
        with importing(path.name), imports_from(path.parent) as own:
            spec.loader.exec_module(module)
        sources = source_files(path, own.modules, own.path)
        for file, name in sources.items():
            if name and name not in own.modules:
                share_later(name, file)
    except BaseException as error:
        sys.modules.pop(module_name, None)
        for name in set(MODELS.names()) - names:
            MODELS.unregister(name)
        if isinstance(error, RobustodeError | KeyboardInterrupt):
            raise
        raise InvalidArgument(
            f"model {reference!r}: {path.name} cannot be imported: {type(error).__name__}: {one_line(error)}"
        ) from error
    _sources[module_name] = sources
    return module


def _importing_from(build: Build, folder: Path) -> Build:
    """Wrap a factory so that imports inside it find the modules beside its file."""

    def wrapped(input_shape: tuple[int, int, int], num_classes: int, **hyperparameters: Any) -> nn.Module:
        with imports_from(folder):
            return build(input_shape, num_classes, **hyperparameters)

    wrapped.__wrapped__ = build  # type: ignore[attr-defined]
    return wrapped


def _slug(factory: str, path: Path) -> str:
    name = path.stem if factory in ("build", "factory", "model", "make", "make_model") else factory
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.") or "external"
