"""Seeds: one stream per sample for noise, one per batch for attacks; the caller's state untouched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from .types import Seed


def sample_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """One 128-bit seed per sample, from a run's seed and the sample's own index in its dataset."""
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
    return [
        int.from_bytes(hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=16).digest(), "big")
        for seed in seeds
    ]


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
