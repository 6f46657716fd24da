"""Contact forces are left out of observation and cost unless asked for, as in both published Slippery Ants."""

from __future__ import annotations

from typing import Any

from ..nonstationary import NonStationaryMixin

__all__ = ["NoContactForcesMixin"]


class NoContactForcesMixin(NonStationaryMixin):
    """A world that changes, without the contact forces unless they are asked for."""

    def __init__(
        self,
        *,
        contact_cost_weight: float = 0.0,
        include_cfrc_ext_in_observation: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            contact_cost_weight=contact_cost_weight,
            include_cfrc_ext_in_observation=include_cfrc_ext_in_observation,
            **kwargs,
        )
