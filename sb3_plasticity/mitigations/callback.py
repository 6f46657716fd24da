"""MitigationCallback: mitigations on any algorithm of SB3, while it learns."""

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_plasticity.agents.networks import networks_of
from sb3_plasticity.common.checks import suggests_names
from sb3_plasticity.mitigations.attachment import Attachment, enlist, release
from sb3_plasticity.mitigations.base import Agent, Mitigation
from sb3_plasticity.mitigations.registry import make_mitigations

# The least number of environment steps between two records: an off-policy rollout is a single step.
LOG_EVERY = 500


class MitigationCallback(BaseCallback):
    """
    Apply mitigations of the loss of plasticity, in the order of the list.

    The callback logs the strength, the penalty and further values of each mitigation under ``mitigation/<name>/``. The
    state of the mitigations is saved and loaded with the model, so a run that is resumed with the same list continues
    as if it had not been interrupted. Hooks are only registered during updates, and all of them are removed when
    ``learn`` ends or when an error is raised during data collection. If an update was interrupted, its hooks have no
    effect, and the next call of ``learn`` removes them.

    :param mitigations: :class:`~sb3_plasticity.Mitigation` objects, or entries as in YAML:
        ``[{"l2_init": {"coef": 1e-3}}]``
    :param verbose: verbosity, as for any callback
    :raises ValueError: if a name or an argument is unknown, or if the agent lacks a selected network when training
        starts
    """

    @suggests_names()
    def __init__(self, mitigations: Mitigation | str | dict[str, Any] | Iterable[Any], verbose: int = 0) -> None:
        super().__init__(verbose)
        self.mitigations = make_mitigations(mitigations)
        self._attachment: Attachment | None = None
        self._task: float | None = None
        self._task_changed = False
        self._watches_tasks = any(part.uses("task_change") for part in self.mitigations)

    def _on_training_start(self) -> None:
        self._release()
        model = self.model
        networks = networks_of(model)
        saved = getattr(model, "mitigation_state", None)
        state = saved.state_dict() if isinstance(saved, _LiveState) else (saved or {})
        self._task, self._task_changed = state.get("task"), state.get("task_changed", False)
        began = model.start_time
        self._attachment = Attachment(
            Agent(networks, model), self.mitigations, state.get("mitigations"), lambda: bool(model.start_time == began)
        )
        enlist(model, self._attachment)
        weakref.finalize(self, self._attachment.disarm)
        model.mitigation_state = _LiveState(self)  # type: ignore[attr-defined]
        self._logged: int | None = None
        for part in self.mitigations:
            left_out = [n for n in networks if n not in part.targets] if part.networks is None else []
            if left_out:
                warnings.warn(
                    f"{part.name} acts on {', '.join(part.targets)} alone: {type(model).__name__} moves its "
                    f"{left_out[0]} without an optimizer"
                )

    def _on_rollout_start(self) -> None:
        assert self._attachment is not None
        self._attachment.disarm()
        if self._task_changed:
            self._task_changed = False
            self._attachment.call("task_change")
        self._attachment.call("rollout_start")

    def _on_step(self) -> bool:
        if self._watches_tasks:
            tasks = [info["task_index"] for info in self.locals.get("infos", ()) if "task_index" in info]
            if tasks and (self._task is None or max(tasks) > self._task):
                self._task_changed |= self._task is not None
                self._task = max(tasks)
        return True

    def _on_rollout_end(self) -> None:
        assert self._attachment is not None
        if self._logged is None or self.num_timesteps - self._logged >= LOG_EVERY:
            self._logged = self.num_timesteps
            for key, value in self._attachment.logs().items():
                self.logger.record(key, value, exclude="stdout")
        self._attachment.call("rollout_end")
        self._attachment.arm()

    def _on_training_end(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._attachment is not None:
            release(self._attachment.agent.model, self._attachment)

    def state_dict(self) -> dict[str, Any]:
        """State of the mitigations and of the watch on tasks, as it is saved with the model."""
        assert self._attachment is not None
        return {
            "mitigations": self._attachment.state_dict(),
            "task": self._task,
            "task_changed": self._task_changed,
        }


class _LiveState:
    """An attribute of the model: when the model is saved it becomes a plain dictionary of the state at that time."""

    __slots__ = ("_callback",)

    def __init__(self, callback: MitigationCallback) -> None:
        self._callback = callback

    def state_dict(self) -> dict[str, Any]:
        return self._callback.state_dict()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (self.state_dict(),)
