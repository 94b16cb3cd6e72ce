"""What a preset says: a TOML file, checked key by key, with one clear line for each mistake. No torch."""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from ..._arguments import Count, Flag, NonNegative, Positive, Real, Whole, plain
from ..._errors import InvalidArgument
from ..._registry import check_name, unknown_name
from .preset_mistakes import mistakes

T = TypeVar("T", bound=float | str)


def _once(values: list[T]) -> list[T]:
    """Leave out what is there already; of numbers what agrees in 12 digits."""
    kept: dict[object, T] = {}
    for value in values:
        kept.setdefault(f"{value:.12g}" if isinstance(value, float) else value, value)
    return list(kept.values())


Once = AfterValidator(_once)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Perturbation(_Table):
    """A registered threat that every training batch passes before the model is trained on it.

    With noise this is augmentation, with a gradient attack adversarial training (Madry et al., ICLR 2018,
    arXiv 1706.06083, eq. 2.1). The strength grows from 0 in equal parts over the first `ramp` epochs.
    """

    threat: str
    strength: Positive
    parameters: dict[str, Any] = {}
    ramp: NonNegative = 0.0


class Recipe(_Table):
    """How a model is trained: Adam, its learning rate multiplied by `decay` after every epoch.

    `select` says which epoch's weights count: the best on held-out training samples, perturbed like those of
    training where there is a `perturb`, or the last.
    """

    name: str = "plain"
    epochs: Count
    batch_size: Count = 100
    learning_rate: Positive = 0.01
    decay: Annotated[Real, Field(gt=0, le=1)] = 1.0
    weight_decay: NonNegative = 0.0
    select: Literal["validation", "last"] = "validation"
    perturb: Perturbation | None = None


class ThreatPlan(_Table):
    """One threat over its grid of strengths.

    `strengths` may be left out for ``clean``, which has none; one that is named twice is one. `reported` is
    the strength shown on the leaderboard; `samples` the number of test samples, all of them unless given, and
    `samples_on_gpu` theirs where the run is on a GPU.
    """

    name: str
    strengths: Annotated[list[NonNegative], Field(min_length=1), Once]
    reported: NonNegative | None = None
    draws: Count = 1
    samples: Count | None = None
    samples_on_gpu: Count | None = None
    batch_size: Count | None = None
    seed: Whole = 0
    parameters: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _clean_has_no_strength(cls, body: Any) -> Any:
        if isinstance(body, dict) and body.get("name") == "clean":
            return {"strengths": [0.0], **body}
        return body

    def samples_on(self, *, gpu: bool) -> int | None:
        """How many test samples are attacked; None for all."""
        return self.samples_on_gpu if gpu and self.samples_on_gpu is not None else self.samples


class ThroughputPlan(_Table):
    """Which batch sizes are timed, for at least so many seconds and passes each."""

    batch_sizes: Annotated[list[Count], Field(min_length=1), Once]
    seconds: Positive = 0.5
    passes: Count = 10


class Smoothing(_Table):
    """Randomised smoothing: standard deviation in pixel units, and how many noisy copies vote.

    `n0` copies choose the class, `n` others certify it with probability 1 - `alpha`, on the first `samples`.
    """

    sigma: Positive
    samples: Count = 100
    n0: Count = 100
    n: Count = 100_000
    alpha: Annotated[Real, Field(gt=0, lt=1)] = 0.001


class TimeLimits(_Table):
    """Seconds that a training and a cell may take at least; what takes longer is stored as a timeout.

    Where the estimate asks for more they may take several times that, see `Plan.allowed`.
    """

    training: Positive = 3600.0
    cell: Positive = 600.0


class ModelOverride(_Table):
    """What a preset changes in one model; `seeds`, where it is trained from fewer than the others."""

    seeds: Count | None = None
    hyperparameters: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


class Variant(ModelOverride):
    """A row of its own: the registered `model`, with other hyperparameters or another recipe."""

    model: str


def _number(value: Any) -> int | float:
    """Let whole numbers stay whole: a hyperparameter may count layers."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("input should be a finite number")
    return value


Number = Annotated[int | float, PlainValidator(_number)]


class Sweep(ModelOverride):
    """A row for each of `values` of one hyperparameter of `model`, called ``<model>-<name>-<value>``."""

    model: str
    hyperparameter: str
    values: Annotated[list[Number], Field(min_length=2)]

    def variants(self) -> dict[str, Variant]:
        """The rows, by name."""
        stem = f"{self.model}-{self.hyperparameter.replace('_', '-')}"
        names = [f"{stem}-{value:g}".replace("+", "") for value in self.values]
        if len(set(names)) < len(names):
            raise InvalidArgument(f"sweep over {self.hyperparameter} of {self.model}: two values read alike")
        return {
            name: Variant(
                model=self.model,
                hyperparameters={**self.hyperparameters, self.hyperparameter: value},
                recipe=self.recipe,
            )
            for name, value in zip(names, self.values, strict=True)
        }


class Preset(_Table):
    """A benchmark: dataset, models, seeds, recipe, threats, throughput.

    `title` is the name unless given. `cost` states, in words, what the whole preset takes on two cores; it
    may be left out. `models` may be ``["all"]`` and may
    name rows of `variants`, which otherwise wait to be named by ``--models``; the rows of `sweeps` join by
    themselves.
    `batch_size` is how many samples are attacked at once; "auto" measures it for each model.
    `rank` names what models are ranked by: a threat, or the norm of a worst case; unless given, ``linf`` or
    else ``l2`` where an attack reports a strength in it, or else the first threat that reports one. `audits`
    names what a row must have been asked to count as audited; unless given, every audit of a model.
    """

    name: str
    title: str
    cost: str = ""
    dataset: str
    models: Annotated[list[str], Field(min_length=1)]
    seeds: Count = 1
    batch_size: Count | Literal["auto"] = 100
    rank: str | None = None
    audits: Annotated[list[str], Field(min_length=1), Once] | None = None
    recipe: Recipe
    threats: Annotated[list[ThreatPlan], Field(min_length=1)]
    throughput: ThroughputPlan | None = None
    smoothing: Smoothing | None = None
    transfer: Flag = False
    time_limit: TimeLimits = TimeLimits()
    overrides: dict[str, ModelOverride] = {}
    variants: dict[str, Variant] = {}
    sweeps: list[Sweep] = []

    def all_variants(self) -> dict[str, Variant]:
        """Every row that is not a registered model, by name; those of the sweeps included."""
        found = dict(self.variants)
        for sweep in self.sweeps:
            for name, variant in sweep.variants().items():
                if name in found:
                    raise InvalidArgument(f"preset {self.name}: two rows are called {name!r}: rename one")
                found[name] = variant
        return found


def preset_names() -> list[str]:
    """The presets that ship with robustode."""
    folder = files("robustode.bench") / "presets"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_preset(name: str) -> Preset:
    """Read a preset by its name, or from a path that ends in ``.toml``.

    Raises
    ------
    InvalidArgument
        When the file is missing, is not TOML, or a key or value in it is wrong.
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InvalidArgument(f"preset {name}: cannot be read: {reason}") from None
        stem = path.stem.lower()
    else:
        if name not in preset_names():
            raise unknown_name("preset", name, preset_names())
        text = (files("robustode.bench") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
        stem = name
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"preset {name}: not valid TOML: {error}") from None
    return parse_preset({"name": stem, "title": stem, **body}, origin=name)


def parse_preset(body: dict[str, Any], *, origin: str) -> Preset:
    """Check the content of a preset; all its mistakes are one line that names the keys."""
    try:
        preset = Preset.model_validate(body)
    except ValidationError as error:
        raise InvalidArgument(f"preset {origin}: {mistakes(error, Preset)}") from None
    check_name(preset.name, "preset")
    check_name(preset.recipe.name, "recipe")
    return preset
