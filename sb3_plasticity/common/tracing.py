"""Whether the present call only records a program."""

import torch as th

try:
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
except ImportError:  # an experimental interface; without it nothing here records through make_fx

    def get_proxy_mode() -> None:  # type: ignore[misc]
        """No recording is under way."""


def is_traced() -> bool:
    """
    Whether tensors have no values to look at, because ``torch.compile`` or ``make_fx`` records what is done to them.

    :return: True while a program is recorded
    """
    return th.compiler.is_compiling() or get_proxy_mode() is not None
