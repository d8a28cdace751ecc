"""Random numbers that follow from where training stands, not from what was drawn before: nothing to save or restore."""

from __future__ import annotations

import random


def seed_of(*place: int | str) -> int:
    """A seed for a place in the training, such as the run's own seed, the process, the epoch and the batch.

    The same on every machine and in every process; different places have unrelated seeds.
    """
    return random.Random(",".join(map(str, place))).getrandbits(63)
