"""Seeds: a stream of its own for each purpose and sample; the caller's state untouched.

No two purposes share a stream, or a network would be trained on the noise that it is tested on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

import numpy as np
import torch

from .types import Seed


class Purpose(StrEnum):
    """What random numbers are for.

    Initial weights and the order of training samples are not among them. They come from torch's generator,
    seeded anew for each training and each epoch (`training.train`).
    """

    EVALUATION = "evaluation"
    TRAINING = "training"
    VALIDATION = "validation"
    AUDIT = "audit"
    SMOOTHING = "smoothing"


def stream_seeds(purpose: Purpose, seed: int, step: int, indices: Sequence[int]) -> list[int]:
    """One 128-bit seed per sample for a purpose; no two purposes, seeds, steps or samples share one.

    Parameters
    ----------
    seed
        Of the training or the attack.
    step
        The epoch, the draw or the restart.
    indices
        The samples' own numbers in their dataset.
    """
    if purpose is Purpose.EVALUATION and 0 <= seed < 2**32 and 0 <= step < 2**32:
        return sample_seeds((seed << 32) | step, indices)  # as in the stored records
    return [_digest(f"{purpose}:{seed}:{step}:{int(index)}") for index in indices]


def stream_generator(purpose: Purpose, seed: int, *what: object) -> torch.Generator:
    """A generator of torch on the CPU for one use `what` of a purpose: a check, a sample, a restart."""
    text = ":".join(map(str, (purpose, seed, "generator", *what)))
    return torch.Generator().manual_seed(_digest(text) % 2**63)


def sample_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """One 128-bit seed per sample from one 64-bit number; `stream_seeds` tells purposes apart besides."""
    return [((seed % 2**64) << 64) | int(index) for index in indices]


def per_sample(seed: Seed, count: int) -> list[int]:
    """Return `seed` as one seed for each of `count` samples; an int is combined with the position."""
    seeds = sample_seeds(seed, range(count)) if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} samples")
    return seeds


def derive(seeds: Sequence[int], *purpose: object) -> list[int]:
    """Another 128-bit seed for each of `seeds` and every purpose: a stage, a restart, a block of draws."""
    text = ":".join(map(str, purpose))
    return [_digest(f"{seed}:{text}") for seed in seeds]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def sample_generators(seeds: Sequence[int]) -> Iterator[np.random.Generator]:
    """A stream of its own for each seed: Philox, a counter-based generator keyed by it.

    It is one generator whose key is changed, several times as fast as a new one for each sample: draw from
    it before asking for the next.
    """
    philox = np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    for seed in seeds:
        low, high = seed % 2**64, seed >> 64 & (2**64 - 1)
        state["state"]["key"][:] = low, high
        philox.state = state
        yield generator


@contextmanager
def seeded(seed: Seed, *, restart: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for a block and restore them afterwards, also on an error."""
    text = f"{restart}:{seed if isinstance(seed, int) else ','.join(map(str, seed))}"
    state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**63
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(state)
        yield
