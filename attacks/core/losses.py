"""What an attack maximises: margins, the cross-entropy and the difference-of-logits ratio, per sample.

APGD looks at a loss's order and at the direction of its gradient, so an increasing function of a loss is as
good as the loss itself. Each is written in the form that does not saturate in floating point.
"""

from __future__ import annotations

import torch
from torch import Tensor


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y in float64, (N,), of logits (N, K): positive exactly where argmax is not y.

    Where two logits are equal argmax takes the first; such a margin is the least positive number if that
    is not y, and 0 if it is. Where a logit is NaN there is no answer (`SampleAnswers`), and the margin is
    infinite.
    """
    logits = logits.double()
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    value = others - logits.gather(1, labels[:, None])[:, 0]
    fooled = logits.argmax(1) != labels
    value = torch.where(fooled, value.clamp_min(torch.finfo(value.dtype).tiny), value)
    return torch.where(logits.isnan().any(1), torch.inf, value)


def answered(logits: Tensor) -> Tensor:
    """Which of `logits` (N, K) are an answer, bool (N,): finite throughout."""
    return logits.isfinite().all(1)


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Where `logits` (N, K) do not answer `labels` (N,), or are no answer, bool (N,)."""
    return (logits.argmax(1) != labels) | ~answered(logits)


def minimum_reliable_margin(logits: Tensor) -> Tensor:
    """How much of a margin of `logits` (N, K) may be rounding error, float64 (N,): the last digits change in
    batches of another size. A tie is never reliable.
    """
    size = logits.abs().amax(1).double().nan_to_num(0)  # no answer: nothing that rounding could undo
    error = 64 * torch.finfo(logits.dtype).eps * size
    return error.clamp_min(torch.finfo(error.dtype).tiny)


def nonzero_gradient(gradient: Tensor) -> Tensor:
    """Which samples' `gradient` (n, C, H, W) is not exactly zero, bool (n,)."""
    return (gradient != 0).flatten(1).any(1)


def wrong_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """The classes other than y by descending logit, int64 (N, K - 1), of logits (N, K)."""
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return wrong.argsort(dim=1, descending=True, stable=True)[:, :-1]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """log sum_{k != y} exp z_k - z_y, (N,): the cross-entropy is log(1 + exp(.)) of it.

    The cross-entropy itself loses its gradient in float32 once the margin passes 17, and its value at 104:
    a large scale of the logits would look like robustness (Carlini, Wagner, arXiv 1608.04644, on
    distillation). This has the same order and the same gradient direction at any scale.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, labels[:, None])[:, 0]


def difference(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y, (N,)."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(z_t - z_y) / (z_pi1 - (z_pi3 + z_pi4) / 2), (N,): Croce, Hein, ICML 2020, equation 7.

    pi sorts the logits downwards. With fewer than four classes there is no z_pi4, and the ratio with z_pi3
    in its place is constant where t and y are first and last of three: `difference` is taken instead.
    """
    if logits.shape[1] < 4:
        return difference(logits, labels, targets)
    z = logits.topk(4, dim=1).values
    return difference(logits, labels, targets) / (z[:, 0] - (z[:, 2] + z[:, 3]) / 2 + 1e-12)
