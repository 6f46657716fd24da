"""How to tell that the present call only records a program."""

import torch as th

try:
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
except ImportError:  # an experimental interface; without it nothing here records through make_fx

    def get_proxy_mode() -> None:  # type: ignore[misc]
        """Return None: no recording is under way."""


def is_traced() -> bool:
    """
    Tell whether tensors have no values to look at, because ``torch.compile`` or ``make_fx`` records a program.

    :return: True while a program is recorded
    """
    return th.compiler.is_compiling() or get_proxy_mode() is not None
