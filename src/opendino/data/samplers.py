# SPDX-License-Identifier: Apache-2.0
"""Endless shuffling without state: which image stands at position p of a run is a pure function of (seed, p).

Position p belongs to epoch p // n and place p % n; each epoch is another permutation of the n images. Nothing is
stored or drawn in advance, so a run resumes at any position, on any number of processes, with the very same order.
Also here: the generator of random numbers that belongs to one purpose and one counter. Read `loaders.py` next.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt64

from opendino.errors import DataError

ROUNDS = 8
_MASK = (1 << 64) - 1


def keyed_rng(seed: int, purpose: str, counter: int) -> np.random.Generator:
    """Random numbers that depend on (seed, purpose, counter) and on nothing else.

    Args:
        seed: seed of the run.
        purpose: what the numbers are for, so that crops and masks of one step are unrelated.
        counter: number of the sample or of the step.
    """
    key = np.array([_mix_int(seed), _mix_int(int.from_bytes(purpose.encode(), "little"))], dtype=np.uint64)
    # The generator counts up the first word; the sample's number stands in the third, out of its way.
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, counter, 0], dtype=np.uint64)))


def permute(
    position: Int64[np.ndarray, "*n"] | int, n: int, seed: int, epoch: Int64[np.ndarray, "*n"] | int
) -> Int64[np.ndarray, "*n"]:
    """Where the permutation of 0..n-1 that belongs to (seed, epoch) takes the given positions.

    A Feistel network on the rectangle rows x columns >= n, whose additions are taken modulo its sides; results that
    fall beyond n are sent through again until they do not (cycle walking), which keeps it a permutation.

    Args:
        position: places in the epoch, each in 0..n-1.
        n: number of images.
        seed: seed of the run.
        epoch: number of the pass over the images, one for all positions or one for each.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", the generalised Feistel cipher.
    Differs: the official samplers draw and store whole permutations.
    """
    places = np.asarray(position, dtype=np.int64)
    if n < 1 or (places < 0).any() or (places >= n).any():
        raise DataError(f"a position lies outside of the {n} images; positions are 0 to {n - 1}")
    values = places.astype(np.uint64).ravel()
    epochs = np.broadcast_to(np.asarray(epoch, dtype=np.int64).astype(np.uint64), places.shape).ravel()
    keys = _mix(epochs, np.uint64(_mix_int(seed)))
    astray = np.arange(values.size)
    while astray.size:
        values[astray] = _feistel(values[astray], keys[astray], n)
        astray = astray[values[astray] >= n]
    return values.reshape(places.shape).astype(np.int64)


def _feistel(values: UInt64[np.ndarray, " n"], keys: UInt64[np.ndarray, " n"], n: int) -> UInt64[np.ndarray, " n"]:
    columns = np.uint64(math.isqrt(n - 1) + 1)
    rows = np.uint64(-(-n // int(columns)))
    row, column = np.divmod(values, columns)
    for turn in range(ROUNDS):
        key = keys + np.uint64(turn)
        if turn % 2:
            column = (column + _mix(row, key) % columns) % columns
        else:
            row = (row + _mix(column, key) % rows) % rows
    return row * columns + column


def _mix(values: UInt64[np.ndarray, " n"], key: UInt64[np.ndarray, " n"] | np.uint64) -> UInt64[np.ndarray, " n"]:
    """64 well-mixed bits for each value and key (splitmix64, once with the value and once with the key)."""
    x = values * np.uint64(0x9E3779B97F4A7C15) ^ key
    for _ in range(2):
        x = (x + np.uint64(0x9E3779B97F4A7C15)) ^ key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def _mix_int(value: int) -> int:
    """The same for one Python integer of any size."""
    mixed = 0
    value = abs(value) * 2 + (value < 0)
    while True:
        mixed = ((mixed ^ (value & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
        value >>= 64
        if not value:
            return mixed


class InfiniteSampler:
    """Endless stream of image indices for one process; all processes together see each image once an epoch.

    Args:
        n: number of images.
        seed: seed of the run.
        start: position of the whole run to begin at: images that all processes together have taken so far.
        rank: number of this process.
        world: number of processes; this one takes positions start + rank, start + rank + world, ...
    """

    def __init__(self, n: int, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1) -> None:
        if n < 1:
            raise DataError(f"a sampler needs at least one image; the data set has {n}")
        self.n, self.seed, self.start, self.rank, self.world = n, seed, start, rank, world

    def at(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Indices of the images at these positions of the run."""
        epochs, places = np.divmod(positions, self.n)
        return permute(places, self.n, self.seed, epochs)

    def __iter__(self) -> Iterator[int]:
        block = 1024
        position = self.start + self.rank
        while True:
            yield from self.at(position + self.world * np.arange(block)).tolist()
            position += self.world * block
