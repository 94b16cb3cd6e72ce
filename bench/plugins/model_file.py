"""Models from any file: ``FILE.py:factory``, which may import modules beside it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from ..._errors import InvalidArgument, RobustodeError, one_line
from ..._registry import Registry, registrations
from ...attacks.core.model_call import where
from ...models import MODELS, ModelSpec
from ...models.registry import same_factory
from ..runtime.foreign_code import importing
from ..runtime.opened_files import forget_reads
from .entry_points import load_plugins
from .file_source import source_files, source_sha256
from .own_imports import PREFIX, imports_from, share_later, still_imported
from .own_imports import forget as forget_imports

P = ParamSpec("P")
T = TypeVar("T")
_registered: dict[str, set[tuple[Registry[Any], str]]] = {}  # by module name: what the file registered
_sources: dict[str, dict[Path, str]] = {}  # by module name: the files of its source, and their modules


def forget_model_files() -> None:
    """Forget every imported file and the modules beside them; what they registered stays."""
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]
    _registered.clear()
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


def load_registrations(files: Sequence[Path]) -> None:
    """Import each of `files` as it is now, for the models, threats and datasets that it registers.

    Raises
    ------
    InvalidArgument
        When a file is missing, cannot be imported or registers nothing.
    """
    for file in files:
        path = file.expanduser().resolve()
        if not path.is_file():
            raise InvalidArgument(f"--load {file}: there is no file {path}")
        module, _ = _import_anew(path, str(file))
        if not _registered[module.__name__]:
            raise InvalidArgument(
                f"--load {file}: it registers nothing: decorate a function with robustode.register_model, "
                "register_threat or register_dataset"
            )
        for registry, name in _registered[module.__name__]:
            if registry is MODELS:
                spec = MODELS.get(name)
                factory = getattr(spec.build, "__name__", "build")
                MODELS.replace(_model_of_file(spec, factory, module.__name__, path))


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
    known, before = set(MODELS.names()), registrations()
    module = _import(path, module_name, reference)
    _registered[module_name] = registrations() - before
    for registry, name in _registered[module_name]:
        if registry is not MODELS:
            registry.replace(_of_file(registry.get(name), registry.kind, module_name, path))
    return module, known


def _of_file(item: Any, kind: str, module_name: str, path: Path) -> Any:
    """A threat or dataset that a file registered: it imports what lies beside, also later.

    The version of a threat follows from the source: a changed algorithm never reuses an old record. The data
    of a dataset are part of every key.
    """
    if kind == "threat":
        version = int(source_sha256(path, _sources[module_name])[:8], 16) << 16 | item.version
        return dataclasses.replace(item, craft=_importing_from(item.craft, path.parent), version=version)
    return dataclasses.replace(item, load=_importing_from(item.load, path.parent))


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
    return _model_of_file(spec, factory, module.__name__, path)


def _model_of_file(spec: ModelSpec, factory: str, module_name: str, path: Path) -> ModelSpec:
    sources = _sources[module_name]
    return dataclasses.replace(
        spec,
        build=_importing_from(spec.build, path.parent),
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
    for registry, name in _registered.pop(module_name, set()):
        registry.unregister(name)


def _import(path: Path, module_name: str, reference: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"model {reference!r}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    before = registrations()
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
        for registry, name in registrations() - before:
            registry.unregister(name)
        if isinstance(error, RobustodeError | KeyboardInterrupt):
            raise
        raise InvalidArgument(
            f"{reference!r}: {path.name} cannot be imported: {type(error).__name__}: {one_line(error)}"
            f"{where(error)}"
        ) from error
    _sources[module_name] = sources
    return module


def _importing_from(function: Callable[P, T], folder: Path) -> Callable[P, T]:
    """Wrap a function of a file so that imports inside it find the modules beside the file."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with imports_from(folder):
            return function(*args, **kwargs)

    return wrapped


def _slug(factory: str, path: Path) -> str:
    name = path.stem if factory in ("build", "factory", "model", "make", "make_model") else factory
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.") or "external"
