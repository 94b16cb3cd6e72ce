"""Each sample's best image so far, and which samples are still under attack."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Index: TypeAlias = Tensor | slice | tuple[Tensor, Tensor]
"""Which of the entries (N,) or (S, N): sample numbers, all of them, or pairs of level and sample number."""


class BestImages:
    """The image of the largest score that was offered for each of N samples, at one level or at each of S.

    The attack chooses the score: the margin, the negative distance of an adversarial image, or the margin
    within each radius of a grid, one level per radius. Of equal scores the first counts. With early stopping
    an image that breaks its sample beyond doubt comes before every one that may not, whatever their scores.
    Samples do not depend on each other. On a GPU no operation waits for the device.

    Parameters
    ----------
    images
        The unperturbed images (N, C, H, W): the best ones until another is offered.
    levels
        S; None for one level without an axis of its own.
    early_stopping
        Whether a sample that is broken beyond doubt leaves the attack. Without it all stay active to the end.
    dtype
        That of the scores.

    Attributes
    ----------
    images
        Best images so far, (N, C, H, W) or (S, N, C, H, W).
    score
        Their scores, (N,) or (S, N); -inf where none was offered.
    broken
        For which samples an image was offered that breaks them beyond doubt, bool (N,) or (S, N).
    """

    def __init__(
        self,
        images: Tensor,
        *,
        levels: int | None = None,
        early_stopping: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        axis = () if levels is None else (levels,)
        self.images = images.detach().expand(*axis, *images.shape).clone()
        self.score = torch.full((*axis, len(images)), -torch.inf, dtype=dtype, device=images.device)
        self.broken = torch.zeros_like(self.score, dtype=torch.bool)
        self.early_stopping = early_stopping

    @property
    def active(self) -> Tensor:
        """Which samples are still attacked, bool (N,) or (S, N)."""
        return ~self.broken if self.early_stopping else torch.ones_like(self.broken)

    @torch.no_grad()
    def offer(
        self,
        index: Index,
        images: Tensor,
        score: Tensor,
        eligible: Tensor | None = None,
        sure: Tensor | None = None,
    ) -> None:
        """Keep those of `images` (n, C, H, W) that are better than the best so far.

        Parameters
        ----------
        score
            (n,).
        eligible
            Which of them count at all, bool (n,); None for all.
        sure
            Which of them are `broken_beyond_doubt`, bool (n,); None for none.
        """
        score = score.to(self.score.dtype)
        better = score > self.score[index]
        if sure is not None and self.early_stopping:
            better = torch.where(sure == self.broken[index], better, sure)
        elif self.early_stopping:
            better &= ~self.broken[index]
        if eligible is not None:
            better &= eligible
        if better.device.type != "cpu" or not self.early_stopping:
            self.images[index] = torch.where(better.view(-1, 1, 1, 1), images, self.images[index])
            self.score[index] = torch.where(better, score, self.score[index])
        elif bool(better.any()):
            gained = _part(index, better)
            self.images[gained] = images[better].detach()
            self.score[gained] = score[better]
        if sure is not None:
            self.stop(index, sure if eligible is None else sure & eligible)

    def stop(self, index: Index, broken: Tensor) -> None:
        """The samples of `index` that are `broken`, bool (n,), are so beyond doubt."""
        self.broken[index] |= broken

    def forget(self, rows: Tensor, which: Tensor) -> None:
        """Let any other image replace those of the samples `rows` (n,) in `which`, bool (n,)."""
        self.score[rows] = self.score[rows].masked_fill(which, -torch.inf)


def _part(index: Index, mask: Tensor) -> Index:
    """The entries of `index` in `mask`, bool (n,)."""
    if isinstance(index, slice):
        return mask.nonzero().flatten()
    return (index[0][mask], index[1][mask]) if isinstance(index, tuple) else index[mask]
