"""
Many simulations of one non-stationary environment in one ``mujoco.batch.Batch``: on a pool of threads, outside Python's
interpreter lock.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding

from sb3_plasticity.common.checks import must_be

from .batched import Columns, batch_class, batched_robot, check_batchable
from .clock import TaskClock
from .nonstationary import NonStationaryMixin, warning_names
from .schedules import Schedule, Task

__all__ = ["BatchedSimulations", "MakeBatch", "Outcome", "Simulation", "rows"]

TASK_COLUMNS = ("task_index", "task_value")

MakeBatch = Callable[[mujoco.MjModel, int], Any]
"""Makes what steps a number of simulations of a model: a ``mujoco.batch.Batch``, or what can do the same."""


class BatchedSimulations:
    """
    Many simulations of one non-stationary environment.

    Nothing here resets by itself and no episode ends by time: that is up to the caller (``MujocoBatchVecEnv``).

    :param template: the environment whose class, model and options all simulations share; it renders, but is never
        stepped
    :param n_sims: number of simulations
    :param n_threads: number of threads, 0 for one per CPU
    :param make_batch: (model, number of simulations) -> what steps them; None for ``mujoco.batch``
    :raises NotBatchableError: if nobody has registered formulas for the environment, if it uses contact forces, or if
        the installed MuJoCo has no ``mujoco.batch``
    """

    def __init__(
        self,
        template: gym.Env,
        n_sims: int,
        n_threads: int = 0,
        make_batch: MakeBatch | None = None,
    ) -> None:
        env: Any = template.unwrapped
        check_batchable(env)
        self.template = env
        self.spec = template.spec  # that of the wrapped environment, which knows the time limit
        self.n_sims = n_sims
        self.batch = (
            batch_class()(env.model, n_sims, n_threads) if make_batch is None else make_batch(env.model, n_sims)
        )
        self.robot = batched_robot(env, self.batch)
        self._qpos = self.batch.bind("qpos")
        self._qvel = self.batch.bind("qvel")
        self._ctrl = self.batch.bind("ctrl")
        # (simulation, kind of warning): how often since the simulation's reset
        self._warnings = self.batch.warning[:, :, 1]
        self._own_fields = env.own_fields  # of the model as compiled: the template has already applied a task
        self._fields = {name: self.batch.expand(name) for name in env.parameter.fields}
        self._applied: list[float | None] = [None] * n_sims
        self.ticks = 0  # how often the simulations have been stepped: what their clocks count by
        self.simulations = [Simulation(self, i) for i in range(n_sims)]
        self.clocks = [simulation.clock for simulation in self.simulations]
        self.tasks = [clock.due() for clock in self.clocks]
        self.task_indices = np.zeros(n_sims, dtype=np.int64)
        self.task_values = np.zeros(n_sims)
        self.at_start = np.ones(n_sims, dtype=bool)
        self._apply(range(n_sims), self.tasks)

    def reset(self, ids: Sequence[int], seeds: Sequence[int | None] | None = None) -> tuple[np.ndarray, Columns]:
        """
        Start episodes in the tasks that are due.

        :param ids: which simulations, in rising order
        :param seeds: for each of them a seed, or None to continue with its generator
        :return: observations, shape (len(ids), observation size), and the columns of their infos
        """
        for i, seed in zip(ids, seeds or [None] * len(ids), strict=True):
            if seed is not None:
                self.simulations[i].np_random = seeding.np_random(seed)[0]
                self.clocks[i].restart()
        self._apply(ids, [self.clocks[i].due() for i in ids])
        self.at_start[ids] = True
        which = np.asarray(ids, dtype=np.int32)
        self.batch.reset(which, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        for i in ids:
            self._qpos[i], self._qvel[i] = self.robot.initial_state(self.simulations[i].np_random)
        self.batch.forward(which)
        return self.robot.observe(ids), self._with_tasks(self.robot.reset_info(ids), ids)

    def step(self, actions: np.ndarray, waiting: Sequence[int] = ()) -> Outcome:
        """
        Advance the simulations.

        :param actions: controls, shape (number of simulations, number of actuators)
        :param waiting: simulations whose results nobody reads, as they are about to be reset: their clocks stand still
        :return: what each environment returns, in arrays
        :raises ValueError: for actions of another shape
        """
        if actions.shape != self._ctrl.shape:
            raise must_be("actions", f"of shape {self._ctrl.shape}", actions.shape)
        if self.template.switch == "immediate":
            self._apply(range(self.n_sims), [clock.due() for clock in self.clocks])
        self.ticks += 1
        for i in waiting:
            self.clocks[i].wait()
        self.at_start[:] = False
        before = self.robot.position()
        self._ctrl[:] = actions
        self.batch.step(nstep=self.template.frame_skip)
        rewards, terminated, columns = self.robot.outcome(before, actions)
        columns = self._with_tasks(columns, slice(None))
        outcome = Outcome(self.robot.observe(), rewards, terminated, columns, {})
        if self._warnings.any() or not (np.isfinite(self._qpos).all() and np.isfinite(self._qvel).all()):
            self._after_divergence(outcome)
        return outcome

    def _with_tasks(self, columns: Columns, ids: Any) -> Columns:
        # copies: they must not change when the simulations continue
        tasks = {"task_index": self.task_indices[ids].copy(), "task_value": self.task_values[ids].copy()}
        return {**columns, **tasks}

    def start_on_time(self, i: int) -> None:
        """Move an episode that was reset, but not stepped, to the task that is due now."""
        if self.at_start[i]:
            self._apply([i], [self.clocks[i].due()])

    def materialize(self, i: int) -> NonStationaryMixin:
        """
        Put a copy of one simulation into the template environment, to render or to inspect it.

        :param i: which simulation
        :return: the template; changes to it do not reach the simulation
        """
        env = self.template
        self.batch.get_model(i, env.model)
        self.batch.get_data(i, env.data)
        mujoco.mj_forward(env.model, env.data)
        env._task = self.tasks[i]
        env._applied = None  # the model is no longer as the template's own bookkeeping has it
        result: NonStationaryMixin = env
        return result

    def _apply(self, ids: Sequence[int], tasks: Sequence[Task]) -> None:
        parameter = self.template.parameter
        changed: dict[float, list[int]] = {}
        for i, task in zip(ids, tasks, strict=True):
            self.tasks[i] = task
            self.task_indices[i], self.task_values[i] = task.index, task.value
            if self._applied[i] != task.value:
                self._applied[i] = task.value
                changed.setdefault(task.value, []).append(i)
        for value, same in changed.items():
            for name, content in parameter.compute(self._own_fields, self.batch.model, value).items():
                self._fields[name][same] = content
        if changed and parameter.set_const:
            self.batch.set_const(np.array(sorted(itertools.chain(*changed.values())), dtype=np.int32))

    def _after_divergence(self, outcome: Outcome) -> None:
        """Overwrite what the physics returned for the simulations that failed, as the mixin does."""
        warned = self._warnings.any(axis=1)
        finite = np.isfinite(self._qpos).all(axis=1) & np.isfinite(self._qvel).all(axis=1)
        ids = np.flatnonzero(warned | ~finite).astype(np.int32)
        for i in ids.tolist():
            outcome.errors[i] = warning_names(self._warnings[i]) if warned[i] else "non-finite state"
        self.batch.reset(ids)
        outcome.observations[ids] = self.robot.observe(ids)
        outcome.rewards[ids] = 0.0
        outcome.terminated[ids] = True
        at_rest = self.robot.reset_info(ids)
        for name, column in outcome.columns.items():
            if name not in TASK_COLUMNS:
                column[ids] = at_rest.get(name, 0)


@dataclasses.dataclass
class Outcome:
    """
    What a step of many environments returns.

    :param observations: shape (n, observation size)
    :param rewards: shape (n,)
    :param terminated: shape (n,)
    :param columns: what single environments put into ``info``, each with n rows
    :param errors: ``simulation_error`` of those that diverged
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    columns: Columns
    errors: dict[int, str]

    def infos(self) -> list[dict[str, Any]]:
        """The info dictionary of every environment."""
        infos = rows(self.columns, len(self.rewards))
        for i, error in self.errors.items():
            infos[i]["simulation_error"] = error
        return infos


class SimulationClock(TaskClock):
    """
    The clock of one simulation, which looks at the batch's count of steps instead of keeping its own.

    :param owner: the batch
    :param schedule: global step -> task
    """

    def __init__(self, owner: BatchedSimulations, schedule: Schedule) -> None:
        self._owner = owner
        super().__init__(schedule)

    @property
    def step(self) -> int:
        """Global step of the simulation's next step."""
        return self._step + (self._owner.ticks - self._since) * self.rate

    @step.setter
    def step(self, value: int) -> None:
        self._step, self._since = value, self._owner.ticks

    def wait(self) -> None:
        """Not count the step that the batch has just counted."""
        self._since += 1


class Simulation:
    """
    One simulation of a batch, as far as it can be addressed like an environment.

    :param owner: the batch
    :param index: which of its simulations
    """

    def __init__(self, owner: BatchedSimulations, index: int) -> None:
        self._owner = owner
        self._index = index
        self._np_random: np.random.Generator | None = None
        env = owner.template
        self.clock = SimulationClock(owner, env.schedule)
        self.clock.frozen = env.clock.frozen

    @property
    def np_random(self) -> np.random.Generator:
        """Generator of the initial states; seeded at random if nobody seeds it."""
        if self._np_random is None:
            self._np_random = seeding.np_random(None)[0]
        return self._np_random

    @np_random.setter
    def np_random(self, generator: np.random.Generator) -> None:
        self._np_random = generator

    @property
    def schedule(self) -> Schedule:
        """Global step -> task."""
        return self.clock.schedule

    @property
    def task(self) -> Task:
        """The task that the simulation is in."""
        return self._owner.tasks[self._index]

    @property
    def unwrapped(self) -> Simulation:
        """Itself: there are no wrappers around a simulation."""
        return self

    def get_wrapper_attr(self, name: str) -> Any:
        """
        Read an attribute, as from a wrapped environment.

        :param name: of the attribute
        :return: its value
        """
        return getattr(self, name)

    @property
    def spec(self) -> EnvSpec | None:
        """What ``gym.make`` was asked for."""
        return self._owner.spec

    @property
    def model(self) -> mujoco.MjModel:
        """A copy of the simulation's model."""
        return self._owner.batch.get_model(self._index)

    @property
    def data(self) -> mujoco.MjData:
        """A copy of the simulation's state, with everything that follows from it."""
        data = self._owner.batch.get_data(self._index)
        mujoco.mj_forward(self.model, data)
        return data

    def sync_clock(self, step: int, rate: int = 1) -> None:
        """As :meth:`NonStationaryMixin.sync_clock`."""
        self.clock.sync(step, rate)
        self._owner.start_on_time(self._index)

    def set_task(self, index: int | None) -> None:
        """As :meth:`NonStationaryMixin.set_task`."""
        self.clock.freeze(index)
        self._owner.start_on_time(self._index)

    def render(self) -> Any:
        """Render a copy of the simulation."""
        return self._owner.materialize(self._index).render()

    def __getattr__(self, name: str) -> Any:
        # only reached for names that are not defined above
        if name.startswith("__") or "_owner" not in self.__dict__:
            raise AttributeError(name)
        template = self._owner.template
        if name in vars(template):
            return vars(template)[name]  # options, spaces: the same for all, as only the data is anyone's own
        value = getattr(self._owner.materialize(self._index), name)
        if callable(value) and getattr(value, "__self__", None) is template:
            raise AttributeError(
                f"{name!r} would act on a copy: of the methods, a simulation in a batch has sync_clock, set_task and "
                "render; use backend='dummy' for others"
            )
        return value


def rows(columns: Columns, n: int) -> list[dict[str, Any]]:
    """
    Make the info dictionaries of single environments.

    :param columns: by key, one entry for each environment
    :param n: number of environments
    :return: a dictionary for each environment
    """
    names = list(columns)
    # task_index is an int and task_value a float, as the environment has them
    values = [column.tolist() if name in TASK_COLUMNS else column for name, column in columns.items()]
    return (
        [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)] if names else [{} for _ in range(n)]
    )
