"""Any environment under a schedule: the wrappers and sequences tick as the robots do."""

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_plasticity.callbacks.task_sync import TaskSyncCallback
from sb3_plasticity.envs import NonStationary, TaskSequence, has_clock
from sb3_plasticity.envs.joint_spaces import cut, join_actions, join_observations, pad
from sb3_plasticity.envs.wrappers import ActionPermutation, ObservationPermutation, ObservationShift

CYCLE: dict[str, Any] = {"kind": "cyclic", "values": [9.8, 20.0, 5.0], "period": 10}
NUMBERED = {"kind": "numbered", "period": 10, "seed": 1}


class Constant(gym.Env[Any, Any]):
    """Sees 1, 2, ... and gives the action back as reward."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, size: int = 3, actions: int = 4, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, size, (size,), np.float32)
        self.action_space = spaces.Discrete(actions)
        self.render_mode = render_mode
        self.level = 1
        self.noise = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observation(), float(action), False, False, {}

    def _observation(self) -> np.ndarray:
        assert self.observation_space.shape is not None
        return np.arange(1, self.observation_space.shape[0] + 1, dtype=np.float32)


def pole_length(env: Any, value: float) -> None:
    env.length = value


WORLDS: dict[str, Callable[..., NonStationary]] = {
    "attribute": lambda **kw: NonStationary(gym.make("CartPole-v1"), "gravity", CYCLE, **kw),
    "function": lambda **kw: NonStationary(gym.make("CartPole-v1"), pole_length, CYCLE, **kw),
    "shift": lambda **kw: ObservationShift(gym.make("CartPole-v1"), 2.0, NUMBERED, **kw),
    "observations": lambda **kw: ObservationPermutation(gym.make("CartPole-v1"), NUMBERED, **kw),
    "actions": lambda **kw: ActionPermutation(gym.make("CartPole-v1"), NUMBERED, **kw),
    "sequence": lambda **kw: TaskSequence(["CartPole-v1", "Acrobot-v1"], 10, **kw),
}


def rollout(env: NonStationary, steps: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """Everything that an env says."""
    rng = np.random.default_rng(seed)
    said = [(*env.reset(seed=seed),)]
    for _ in range(steps):
        said.append(env.step(int(rng.integers(2))))
        if said[-1][2] or said[-1][3]:
            said.append((*env.reset(),))
    return said


def assert_equal(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]


def indices(env: NonStationary, steps: int) -> list[int]:
    return [env.step(0)[-1]["task_index"] for _ in range(steps)]


@pytest.mark.parametrize("name", WORLDS)
def test_same_seed_same_rollout_and_pickling(name: str) -> None:
    env = WORLDS[name]()
    assert has_clock(env) and not has_clock(gym.make("CartPole-v1"))
    first = rollout(env, 60)
    assert len({said[-1]["task_index"] for said in first}) >= 2
    assert_equal(first, rollout(pickle.loads(pickle.dumps(env)), 60))
    assert_equal(first, rollout(WORLDS[name](), 60))


@pytest.mark.parametrize("name", WORLDS)
def test_clocks_freezing_and_syncing(name: str) -> None:
    env = WORLDS[name](task=2)
    assert env.reset(seed=0)[1]["task_index"] == 2 == env.task.index
    env.set_task(None)
    assert env.reset(seed=0)[1]["task_index"] == 0
    env.sync_clock(15, 0)  # not moved yet, so it starts in the task of the new clock
    assert indices(env, 3) == [1] * 3
    env.sync_clock(25, 1)
    assert indices(env, 1) == [1] and env.reset(seed=0)[1]["task_index"] == 2
    with pytest.raises(ValueError, match=r"`switch` must be one of 'reset', 'immediate', got 'now'"):
        WORLDS[name](switch="now")


def test_immediate_switches_within_an_episode() -> None:
    env = NonStationary(Constant(), "level", {**CYCLE, "values": [1, 2, 3]}, switch="immediate")
    env.reset(seed=0)
    assert indices(env, 25) == [0] * 10 + [1] * 10 + [2] * 5
    assert env.unwrapped.level == 3 and type(env.unwrapped.level) is int
    env = TaskSequence([Constant, Constant], 10, switch="immediate")
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(10)] == [False] * 9 + [True]
    assert env.reset()[1] == {"task_index": 1, "task_value": 1.0, "task_name": "Constant (2)"}


def test_the_attribute_is_set_and_set_again_after_a_reset() -> None:
    class Forgetful(Constant):
        def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
            self.noise = 0.0
            return super().reset(**keywords)

    env = NonStationary(Forgetful(), "noise", {"kind": "constant", "value": 0.5})
    env.reset(seed=0)
    assert env.unwrapped.noise == 0.5
    assert env.step(0)[-1] == {"task_index": 0, "task_value": 0.5}
    inner: Any = gym.make("SlipperyAnt-v0", task=0)
    NonStationary(inner, "model.opt.timestep", {"kind": "constant", "value": 0.004})
    assert inner.unwrapped.model.opt.timestep == 0.004


def test_shifts_and_permutations_are_what_they_say() -> None:
    env = ObservationShift(Constant(), 2.0, NUMBERED)
    plain = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(env.reset(seed=0)[0], plain)  # none in the first task
    env.set_task(4)
    expected = np.random.default_rng((1, 4)).normal(0, 2.0, 3).astype(np.float32)
    np.testing.assert_array_equal(env.reset()[0] - plain, (plain + expected) - plain)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    env = ObservationPermutation(Constant(), NUMBERED, task=3)
    np.testing.assert_array_equal(env.reset()[0], plain[np.random.default_rng((1, 3)).permutation(3)])
    env = ActionPermutation(Constant(), NUMBERED, task=3)
    env.reset()
    assert [env.step(a)[1] for a in range(4)] == np.random.default_rng((1, 3)).permutation(4).tolist()
    shifts = [ObservationShift(Constant(1000), 2.0, NUMBERED, task=k)._drawn for k in range(1, 20)]
    assert np.std(shifts) == pytest.approx(2.0, rel=0.02) and abs(np.mean(shifts)) < 0.05


def test_a_sequence_pads_and_offers_the_largest_space() -> None:
    env = TaskSequence([Constant, lambda render_mode=None: Constant(5, 6)], 10, task=0)
    assert env.observation_space == spaces.Box(0, np.array([5, 5, 5, 5, 5], np.float32))
    assert env.action_space == spaces.Discrete(6)
    assert env.reset(seed=0)[0].tolist() == [1, 2, 3, 0, 0]
    assert env.step(3)[1] == 3 and env.step(5)[1] == 0  # an action that the first task lacks is its first one
    env.set_task(1)
    assert env.task.name == "Constant"  # until the episode ends
    assert env.reset()[0].tolist() == [1, 2, 3, 4, 5] and env.step(5)[1] == 5 and env.task.name == "<lambda>"


def test_joining_boxes_of_different_shapes_by_hand() -> None:
    bits, floats = spaces.MultiBinary(3), spaces.Box(-1, 1, (2, 3), np.float32)
    joint = join_observations({"a": floats, "b": spaces.Box(-2, 0, (4, 1), np.float64)})
    assert joint.shape == (4, 3) and joint.dtype == np.float64
    assert joint.low.tolist() == [[-2, -1, -1], [-2, -1, -1], [-2, 0, 0], [-2, 0, 0]]
    np.testing.assert_array_equal(pad(np.ones((1, 2)), (2, 2), np.float32), [[1, 1], [0, 0]])
    arms = {"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(-1, 1, (2,))}
    assert join_actions(arms) == arms["a"] and cut(np.arange(3), arms["b"]).tolist() == [0, 1]
    for join, what in ((join_observations, "observation"), (join_actions, "action")):
        with pytest.raises(ValueError, match=rf"`tasks` must have {what} spaces .*, got a: MultiBinary\(3\), b: Box"):
            join({"a": bits, "b": floats})


def test_tasks_are_synchronised_by_the_callback() -> None:
    env = DummyVecEnv([lambda: TaskSequence(["CartPole-v1", "Acrobot-v1"], 64)] * 2)
    assert has_clock(env)
    changes = []
    callback = TaskSyncCallback(lambda old, new: changes.append((old.name, new.name, new.index)))
    PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, device="cpu").learn(256, callback=callback)
    assert ("CartPole-v1", "Acrobot-v1", 1) in changes
    assert [clock.step for clock in env.get_attr("clock")] == [256, 256]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NonStationary(Constant(), "nois", CYCLE),
            r"`parameter` must be .* \(did you mean 'noise'\?\)",
        ),
        (
            lambda: NonStationary(Constant(), "action_space", CYCLE),
            r"attribute of Constant.* which is Discrete",
        ),
        (lambda: NonStationary(Constant(), 3, CYCLE), r"`parameter` must be .* got 3"),
        (lambda: NonStationary(Constant(), "noise", {**CYCLE, "period": 0}), r"`period` must be .* got 0"),
        (lambda: ObservationShift(Constant(), 2.0, CYCLE), r"`schedule` must be of kind 'numbered'"),
        (lambda: ObservationShift(Constant(), -1.0), r"`scale` must be a finite number > 0, got -1.0"),
        (lambda: ObservationShift(gym.make("FrozenLake-v1")), r"`env` must be .* got Discrete\(16\)"),
        (lambda: TaskSequence([], 10), r"`tasks` must be a list of ids"),
        (lambda: TaskSequence("CartPole-v1", 10), r"`tasks` must be a list of ids"),
        (lambda: TaskSequence(["CartPole-v1"]), r"`period` must be given"),
        (lambda: TaskSequence(["CartPole-v1"], 0), r"`period` must be .* got 0"),
        (lambda: TaskSequence(["CartPole-v1"], 10, "random"), r"`order` must be one of 'cyclic', 'once', 'shuffled'"),
        (
            lambda: TaskSequence(["CartPool-v1"], 10),
            r"`tasks` must be environments that can be made, got .CartPool",
        ),
        (lambda: TaskSequence([{"id": "CartPole-v1", "kwarg": {}}], 10), r"got 'kwarg' \(did you mean 'kwargs'\?\)"),
        (lambda: TaskSequence(["CartPole-v1", "Pendulum-v1"], 10), r"action spaces .*CartPole-v1: Discrete\(2\), Pend"),
    ],
)
def test_bad_arguments_are_one_sentence_before_training(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
