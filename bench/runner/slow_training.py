"""Says before a training begins that it takes longer than its preset expects, and what helps."""

from __future__ import annotations

from ..config.plan import Plan
from ..runtime.progress import duration
from .schedule import RemainingWork


def slow_training(work: RemainingWork, plan: Plan) -> str | None:
    """One line about the training of a model where the preset's limit, or the user's, is too short for it.

    None where it is not trained, or fast enough.
    """
    least, seconds = plan.limits.training, work.training
    unknown = seconds is None and work.cost.problem and not work.cost.failed
    if not unknown and (seconds is None or seconds <= least):
        return None
    whole = f"cannot be timed ({work.cost.problem})" if unknown else f"takes about {duration(seconds or 0.0)}"
    allowed = plan.allowed(least, seconds or 0.0)
    stopped = unknown or (seconds or 0.0) > allowed
    limit = f"{'is stopped after' if stopped else 'may take'} {duration(allowed)} (--time-limit sets it)"
    why, grid = "", ""
    if work.adaptive is not None:
        why = (
            f"; its solver chooses its steps, {work.adaptive} evaluations of the field a pass now and mostly "
            "more as it is trained"
        )
        grid = "a solver with a fixed grid in the model, "
    return (
        f"{work.model}: the training of each seed {whole} and {limit}{why}. What helps: weights that were "
        f"trained elsewhere (--weights), {grid}fewer epochs ([recipe] epochs in a preset of your own)"
    )
