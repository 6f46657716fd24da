"""Random numbers that no global generator notices."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """
    Seed Python's, NumPy's and torch's global generators, and put them back as they were.

    :param seed: for what is drawn inside the context
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(th.cuda.device_count())) if th.cuda.is_initialized() else []
    with th.random.fork_rng(devices=devices):
        # Not th.manual_seed: it would seed the generators of devices that are not forked.
        th.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
