from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_plasticity.callbacks.task_sync import TaskSyncCallback
from sb3_plasticity.envs import Task
from sb3_plasticity.vec_env import make_nonstationary_vec_env

CYCLE = {"kind": "cyclic", "values": [0.1, 0.5, 2.0], "period": 128}
KEYWORDS: dict[str, Any] = {"schedule": CYCLE, "switch": "immediate"}
OFF_POLICY = {"learning_starts": 10, "train_freq": 4, "buffer_size": 1000}


class Transitions(BaseCallback):
    """Remember (steps before this one, info) of every transition."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, float]] = []

    def _on_step(self) -> bool:
        before = self.num_timesteps - self.training_env.num_envs
        self.seen += [(before, info["task_index"], info["task_value"]) for info in self.locals["infos"]]
        return True


class EvaluationTasks(EvalCallback):
    """Remember the task of each evaluation."""

    def __init__(self, env: VecEnv, **kwargs: Any) -> None:
        super().__init__(env, **kwargs)
        self.seen: list[tuple[int, int]] = []

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        if not self.seen or self.seen[-1][0] != self.num_timesteps:
            self.seen.append((self.num_timesteps, locals_["info"]["task_index"]))
        assert locals_["info"]["task_index"] == self.seen[-1][1]  # no task changes within an evaluation


def vec_env(backend: str = "auto", n_envs: int = 2, **keywords: Any) -> VecEnv:
    return make_nonstationary_vec_env(
        "SlipperyHopper-v0", n_envs, seed=0, backend=backend, env_kwargs={**KEYWORDS, **keywords}
    )


def make(algorithm: type[BaseAlgorithm], env: Any, policy: str = "MlpPolicy", **keywords: Any) -> BaseAlgorithm:
    if not keywords:
        keywords = OFF_POLICY if algorithm is SAC else {"n_steps": 32}
    if algorithm is PPO:
        keywords["batch_size"] = 32
    policy_kwargs = {"net_arch": [8], **({"lstm_hidden_size": 8} if "Lstm" in policy else {})}
    return algorithm(policy, env, policy_kwargs=policy_kwargs, device="cpu", seed=0, **keywords)


def due(step: int) -> int:
    return step // 128


@pytest.mark.parametrize(
    ("backend", "normalize"),
    [("dummy", False), ("dummy", True), ("batch", False), ("batch", True), ("subproc", True)],
)
def test_training_and_evaluation_share_the_clock(backend: str, normalize: bool) -> None:
    env, eval_env = vec_env(backend), vec_env(backend, 1)
    if normalize:
        env, eval_env = VecNormalize(env), VecNormalize(eval_env, training=False)
    transitions, evaluation = Transitions(), EvaluationTasks(eval_env, eval_freq=40, n_eval_episodes=1, verbose=0)
    changes = []
    model = make(PPO, env)
    sync = TaskSyncCallback(on_task_change=lambda old, new: changes.append((model.num_timesteps, old, new)))
    model.learn(384, callback=[evaluation, transitions, sync])
    assert [index for _, index, _ in transitions.seen] == [due(step) for step, *_ in transitions.seen]
    assert {value for _, _, value in transitions.seen} == {0.1, 0.5, 2.0}
    # evaluations after 80, 160, ... steps show the task of the last transition
    assert evaluation.seen == [(step, due(step - 2)) for step in range(80, 385, 80)]
    assert changes == [(130, Task(0, 0.1), Task(1, 0.5)), (258, Task(1, 0.5), Task(2, 2.0))]
    env.close(), eval_env.close()


@pytest.mark.parametrize(
    ("algorithm", "keywords"),
    [
        (stable_baselines3.A2C, {"n_steps": 8}),
        (stable_baselines3.SAC, OFF_POLICY),
        (sb3_contrib.TQC, OFF_POLICY),
        (sb3_contrib.RecurrentPPO, {"n_steps": 32, "batch_size": 32}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_algorithms(algorithm: type[BaseAlgorithm], keywords: dict[str, int]) -> None:
    policy = "MlpLstmPolicy" if algorithm is sb3_contrib.RecurrentPPO else "MlpPolicy"
    transitions = Transitions()
    evaluation = EvaluationTasks(vec_env(n_envs=1), eval_freq=50, n_eval_episodes=1, verbose=0)
    make(algorithm, vec_env(), policy, **keywords).learn(300, callback=[TaskSyncCallback(), evaluation, transitions])
    assert len(transitions.seen) >= 300
    assert [index for _, index, _ in transitions.seen] == [due(step) for step, *_ in transitions.seen]
    assert evaluation.seen[:3] == [(100, 0), (200, 1), (300, 2)]


class MaskedHopper(gym.ActionWrapper):
    """A discrete Hopper for MaskablePPO: full torque forwards, none, or backwards, in all joints."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = spaces.Discrete(3)

    def action(self, action: int) -> np.ndarray:
        return np.full(3, float(action) - 1, np.float32)

    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False])


def test_maskable_ppo_finds_the_env_below_a_wrapper() -> None:
    transitions = Transitions()
    env = MaskedHopper(gym.make("SlipperyHopper-v0", **KEYWORDS))
    model = make(sb3_contrib.MaskablePPO, env, n_steps=64)
    model.learn(256, callback=[TaskSyncCallback(), transitions])
    assert [index for _, index, _ in transitions.seen] == [due(step) for step, *_ in transitions.seen]
    assert transitions.seen[-1][1] == 1


def test_resuming_continues_the_schedule(tmp_path: Path) -> None:
    model = make(PPO, vec_env(switch="reset"))
    model.learn(192, callback=TaskSyncCallback())
    model.save(tmp_path / "model")
    resumed, transitions = PPO.load(tmp_path / "model", env=vec_env(switch="reset")), Transitions()
    changes = []
    sync = TaskSyncCallback(on_task_change=lambda *tasks: changes.append(tasks))
    resumed.learn(64, callback=[sync, transitions], reset_num_timesteps=False)
    steps = [step for step, *_ in transitions.seen]
    assert (steps[0], steps[-1]) == (192, 254)
    assert {index for _, index, _ in transitions.seen} == {1}  # from the very first step, which follows the env's reset
    assert changes == []


def test_switch_reset_is_reported_when_the_first_env_switches() -> None:
    env = vec_env(switch="reset")
    transitions, changes = Transitions(), []
    model = make(PPO, env)
    sync = TaskSyncCallback(on_task_change=lambda old, new: changes.append((model.num_timesteps, new.index)))
    model.learn(384, callback=[transitions, sync])
    for step, index in changes:
        assert min(before for before, seen, _ in transitions.seen if seen == index) == step - 2 >= 128 * index
    assert [index for _, index in changes] == [1, 2]


def test_a_frozen_evaluation_env_keeps_its_task() -> None:
    evaluation = EvaluationTasks(vec_env(n_envs=1, task=7), eval_freq=64, n_eval_episodes=1, verbose=0)
    make(PPO, vec_env()).learn(256, callback=[TaskSyncCallback(), evaluation])
    assert evaluation.seen == [(128, 7), (256, 7)]


def test_evaluation_follows_frozen_training() -> None:
    evaluation = EvaluationTasks(vec_env(n_envs=1), eval_freq=64, n_eval_episodes=1, verbose=0)
    make(PPO, vec_env(task=7)).learn(256, callback=[TaskSyncCallback(), evaluation])
    assert evaluation.seen == [(128, 7), (256, 7)]


def test_evaluation_follows_a_sinusoid_and_callbacks_may_be_nested() -> None:
    schedule = {"kind": "sinusoid", "low": 0.5, "high": 1.5, "period": 256}
    values = []

    class Values(EvalCallback):
        def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
            values.append(locals_["info"]["task_value"])

    evaluation = Values(vec_env(n_envs=1, schedule=schedule), eval_freq=1, n_eval_episodes=1, verbose=0)
    callback = CallbackList([CallbackList([EveryNTimesteps(64, evaluation)]), TaskSyncCallback()])
    make(PPO, vec_env(schedule=schedule)).learn(64, callback=callback)
    assert len(set(values)) == 1
    # here the evaluation comes before the synchronisation of its step: it sees the transition before the last
    assert values[0] == pytest.approx(1 + 0.5 * np.sin(2 * np.pi * 60 / 256))


def test_logs_and_twice_is_once(tmp_path: Path) -> None:
    model = make(PPO, vec_env())
    model.set_logger(configure(str(tmp_path), ["csv"]))
    transitions = Transitions()
    model.learn(256, callback=[TaskSyncCallback(), transitions, TaskSyncCallback()])
    assert [index for _, index, _ in transitions.seen] == [due(step) for step, *_ in transitions.seen]
    rows = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True, deletechars="")
    np.testing.assert_array_equal(rows["time/total_timesteps"], [64, 128, 192, 256])
    np.testing.assert_array_equal(rows["task/index"], [0, 0, 1, 1])
    np.testing.assert_array_equal(rows["task/value"], [0.1, 0.1, 0.5, 0.5])


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_other_envs_are_left_alone(algorithm: type[BaseAlgorithm], tmp_path: Path) -> None:
    model = make(algorithm, "Pendulum-v1")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    evaluation = EvalCallback(gym.make("Pendulum-v1"), eval_freq=32, n_eval_episodes=1, verbose=0, warn=False)
    model.learn(64, callback=[TaskSyncCallback(on_task_change=lambda *_: pytest.fail("no task changes")), evaluation])
    assert "task/" not in (tmp_path / "progress.csv").read_text()


def test_vectorised_envs_without_attributes_are_left_alone() -> None:
    class Foreign(DummyVecEnv):
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            if attr_name == "render_mode":
                return [None]
            raise NotImplementedError

    make(PPO, Foreign([lambda: gym.make("Pendulum-v1")])).learn(32, callback=TaskSyncCallback())


def test_training_is_unchanged_by_the_callback() -> None:
    def weights(callback: TaskSyncCallback | None) -> dict[str, Any]:
        model = make(PPO, vec_env(schedule={"kind": "constant", "value": 1.0}))
        return model.learn(128, callback=callback).get_parameters()["policy"]

    for one, other in zip(weights(None).values(), weights(TaskSyncCallback()).values(), strict=True):
        assert one.equal(other)


def test_bad_hook() -> None:
    with pytest.raises(ValueError, match=r"`on_task_change` must be .* got 3"):
        TaskSyncCallback(on_task_change=3)  # type: ignore[arg-type]
