"""Commands on models and other registered things: list, new-..., check. Each imports what it needs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

from ..._errors import InvalidArgument
from .shared import load_plugins_with_warnings


def list_command(arguments: Namespace) -> int:
    """Print what is registered."""
    from .list import listing

    if arguments.what not in ("presets", "audits"):
        load_plugins_with_warnings()
    print(listing(arguments.what, as_json=arguments.json))
    return 0


def new_file_command(arguments: Namespace) -> int:
    """Write a model, threat, dataset or preset of one file and say what to do next."""
    from ..plugins.new_file import new_file

    kind = arguments.command.removeprefix("new-")
    images = getattr(arguments, "images", None)
    if arguments.name in _taken(kind):
        raise InvalidArgument(f"{kind} {arguments.name!r} is registered already: choose another name")
    if images is not None and not images.is_dir():
        raise InvalidArgument(f"--images: there is no folder {images}")
    path = new_file(kind, arguments.name, arguments.file, images=images)
    print(f"wrote {path}")
    for line in _next_steps(kind, arguments.name, path):
        print(line)
    return 0


def _taken(kind: str) -> Collection[str]:
    if kind == "preset":
        from ..config.preset import preset_names

        return preset_names()
    if kind == "dataset":
        from ..data import DATASETS

        return DATASETS.names()
    if kind == "threat":
        from ...attacks import THREATS

        return THREATS.names()
    from ...models import MODELS

    return MODELS.names()


def _next_steps(kind: str, name: str, path: Path) -> list[str]:
    if kind == "preset":
        return [f"next: robustode run --preset {path} --dry-run", f"then: robustode run --preset {path}"]
    if kind in ("threat", "dataset"):
        own = f'dataset = "{name}"' if kind == "dataset" else f'a threat of name = "{name}"'
        return [
            f"next: robustode list {kind}s --load {path}",
            f"then: robustode new-preset my-preset, put {own} into it, and",
            f"      robustode run --preset my_preset.toml --load {path}",
        ]
    registered = path.resolve().parent == Path(__file__).resolve().parents[2] / "models"
    model = name if registered else f"{path}:build"
    return [
        f"next: robustode check {model}",
        f"then: robustode run --models {model}",
        f"or, with weights of your own: robustode run --models {model} --weights FILE.safetensors",
    ]


def check_command(arguments: Namespace) -> int:
    """Print the conformance checks of one model; 1 where one fails."""
    from rich.console import Console

    from ..conformance.run import check_model
    from ..plugins.model_file import resolve_model

    load_plugins_with_warnings()
    console = Console(highlight=False)
    told: dict[str | None, str] = {}
    for result in check_model(resolve_model(arguments.model)):
        first = result.check if result.passed else told.setdefault(result.error, result.check)
        line = str(result) if first == result.check else f"FAIL    {result.check}: for the reason of {first}"
        console.print(line, markup=False, soft_wrap=True)
    return 1 if told else 0
