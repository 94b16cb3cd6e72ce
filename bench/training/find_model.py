"""Which model a stored training is of: named by the caller, in the file that was last run, or registered."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..._errors import InvalidArgument, UnknownName
from ...models import MODELS, ModelSpec
from ..plugins.entry_points import load_plugins
from ..plugins.model_file import load_files
from ..records.headline import stated_headline
from ..records.record import Record
from .load_trained import check_version


class ModelFinder:
    """Finds the models of what a results folder holds; plug-ins are loaded, and each file once.

    Parameters
    ----------
    folder
        The results folder. Its plan says where the files of its models lay when they were last run.
    specs
        Models from files that the caller names; they come first.
    how
        How the caller accepts a file, for messages.
    search
        Import the files that the plan names. False for a folder of someone else, whose plan nobody has read.
    """

    def __init__(
        self, folder: Path, specs: Iterable[ModelSpec] = (), *, how: str = "--models {}", search: bool = True
    ) -> None:
        load_plugins()
        stated = stated_headline(folder) if search else None
        self._folder, self._how = Path(folder), how
        self._named = {spec.name: spec for spec in specs}
        self._files = dict(stated.files) if stated else {}
        self._loaded: dict[str, ModelSpec] = {}

    def find(self, training: Record) -> ModelSpec:
        """The model that `training` used.

        Raises
        ------
        UnknownName
            When it cannot be found.
        InvalidArgument
            When its file cannot be imported.
        CheckpointError
            When its code has changed since.
        """
        cell, name = training.cell, str(training.card.get("architecture", training.cell.model))
        spec = self._named.get(cell.model) or self._named.get(name) or self._of_its_file(training)
        if spec is None and name in MODELS:
            spec = MODELS.get(name)
        if spec is None:
            raise UnknownName(self._advice(training, name))
        check_version(training, spec)
        return spec

    def _of_its_file(self, training: Record) -> ModelSpec | None:
        """The model of the file that its last run read; None where that is not known or not there."""
        known = self._files.get(training.cell.model)
        if known is None or "file" not in training.card or not known.path(self._folder).is_file():
            return None
        reference = known.reference(self._folder)
        if reference not in self._loaded:
            self._loaded |= self._load(reference)
        return self._loaded[reference]

    def _load(self, reference: str) -> dict[str, ModelSpec]:
        """Import a file, once for all models of this folder that come from it."""
        file = reference.rpartition(":")[0]
        all_of_it = {f.reference(self._folder) for f in self._files.values()}
        try:
            return load_files([r for r in sorted(all_of_it) if r.rpartition(":")[0] == file])
        except InvalidArgument:  # of another factory that it had, perhaps
            return load_files([reference])

    def _advice(self, training: Record, name: str) -> str:
        file, package = training.card.get("file"), training.card.get("plugin")
        where = self._how.format(f"FOLDER/{file}" if file else "FILE.py:factory")
        known = self._files.get(training.cell.model)
        if package:
            return f"{name} is no registered model: install {package}, which it came from"
        if file and known is not None:
            return f"{known.problem(self._folder)}, and {name} comes from it: say where it is with {where}"
        return f"{name} is no registered model: give its file with {where}"
