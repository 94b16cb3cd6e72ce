"""The exceptions a user meets. Each message is one line and says what to do next."""

from __future__ import annotations


class RobustodeError(Exception):
    """Base of every error that is shown to a user as one line, without a traceback.

    `status` is what a record of the failed work says.
    """

    status = "error"


class InvalidArgument(RobustodeError, ValueError):
    """An argument, preset or threat strength that cannot be used (exit status 2)."""


class UnknownName(InvalidArgument):
    """A name that no registry holds; the message suggests the nearest ones."""


class DataUnavailable(RobustodeError):
    """A dataset that is neither on disk nor downloadable; the message says where to put it."""


class ModelFailure(RobustodeError):
    """A model that raises, or whose solver gives up."""


class ContractBroken(ModelFailure):
    """A model whose output is not a floating tensor of logits (N, K), or that contradicts what it states."""

    status = "contract"


class AttackFailure(RobustodeError):
    """A noise or an attack of a user or of another library that raises; names the line where it is known."""


class NonFinite(ModelFailure):
    """Logits, gradients, losses or images that are NaN or infinite."""

    status = "nonfinite"


class BudgetViolation(RobustodeError):
    """A perturbed image outside its norm ball or outside the pixel box [0, 1]."""

    status = "budget"


class TimeLimitExceeded(RobustodeError):
    """A unit of work that took longer than its preset allows."""

    status = "timeout"


class CheckpointError(RobustodeError):
    """A checkpoint that cannot be used: truncated, altered, or not safetensors."""


class RecordError(RobustodeError):
    """A stored record that cannot be used: truncated, edited, or of an unknown schema."""


class RobustodeWarning(UserWarning):
    """Base of every warning of robustode itself."""


class ForeignCodeWarning(RobustodeWarning):
    """Other people's code changed something global, which was put back; the message names both."""


class InconsistentModelWarning(RobustodeWarning):
    """A network whose answer to an image changes from pass to pass, or with the other images of its batch."""


class UntrainedModelWarning(RobustodeWarning):
    """A network that has learnt nothing: on held-out samples it is no better than a constant answer."""


class NotAsked(Exception):
    """A question that cannot be put to a model, which is no error of it; says why, without a full stop."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of an error's message, shortened to `limit` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
