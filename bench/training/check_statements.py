"""What a model states beside what it computes, compared with it on real states."""

from __future__ import annotations

from torch import Tensor, nn

from ...attacks.core.image_dtype import call_in_its_dtype
from ...attacks.core.modes import eval_mode
from ...attacks.core.sample_answers import may_concern_a_sample
from ...attacks.core.torch_settings import KeptSettings
from ...models import check_field_agreement, check_stated_bounds
from ..runtime.foreign_code import running

FEW_IMAGES = 16
"""Images whose states decide."""


def check_statements(model: nn.Module, images: Tensor, *, of: str = "the training images") -> None:
    """Refuse a model that contradicts what its flow states; a run asks before and after training.

    A layer that states its field both by ``forward`` and by matrices must state one field, and constants that
    a flow states by hand must hold. What is stated once is not asked. The model and what is global are left
    as they were.

    Parameters
    ----------
    images
        Shape (N, C, H, W), on the device of `model`; the first `FEW_IMAGES` are used.
    of
        What the images are, for the error message.

    Raises
    ------
    ContractBroken
        When `model` contradicts a statement; one line.
    """
    few = images[:FEW_IMAGES].clone()

    def ask() -> object:
        """One pass, or where it fails one for each image that has an answer."""
        failures: list[Exception] = []
        for part in (few, *few.split(1)):
            try:
                with KeptSettings(model):
                    found = call_in_its_dtype(model, part)
            except Exception as error:
                if not may_concern_a_sample(error):
                    raise
                failures.append(error)
            else:
                if part is few:
                    return found
        if len(failures) > len(few):
            raise failures[0]
        return None

    with running(model, 0), eval_mode(model):
        check_field_agreement(model, ask, of=of)
        check_stated_bounds(model, ask, of=of)
