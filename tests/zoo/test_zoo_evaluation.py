import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import TINY, TINY_L2ER
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from sb3_plasticity import NonStationary, make_nonstationary_vec_env
from sb3_plasticity.zoo.evaluation import Evaluation, episodes_for, fixed_tasks
from sb3_plasticity.zoo.experiment import Experiment
from sb3_plasticity.zoo.overview import OverviewCallback, flatten
from sb3_plasticity.zoo.search import SAMPLERS, Sized
from sb3_plasticity.zoo.spec import RunSpec

RUN = Path("logs/ppo_l2er/SlipperyAnt-v0_1")


@pytest.mark.parametrize(
    ("schedule", "tasks", "values"),
    [
        ({"kind": "cyclic", "values": [3, 1, 2], "period": 10}, None, [3, 1, 2]),
        ({"kind": "cyclic", "values": [3, 1, 2], "period": 10}, [1, 4], [1, 1]),
        ({"kind": "constant", "value": 0.3}, None, [0.3]),
        ({"kind": "sinusoid", "low": 0.1, "high": 2.1, "period": 9}, None, [0.1, 0.6, 1.1, 1.6, 2.1]),
        ({"kind": "table", "values": [1, 2], "period": 9}, None, [1, 2]),
    ],
)
def test_fixed_tasks_are_the_schedules_first_ones(
    schedule: dict[str, Any], tasks: list[int] | None, values: list[float]
) -> None:
    probe = make_nonstationary_vec_env("SlipperyAnt-v0", 1, env_kwargs={"schedule": schedule})
    fixed = fixed_tasks(probe, tasks)
    kwargs = {"schedule": schedule, **fixed.env_kwargs}
    envs = make_nonstationary_vec_env("SlipperyAnt-v0", len(values), env_kwargs=kwargs)
    for i, index in enumerate(fixed.indices):
        envs.env_method("set_task", index, indices=i)
    envs.reset()
    assert [task.value for task in envs.get_attr("task")] == pytest.approx(values)
    assert fixed.labels == [f"friction_{value:.3g}" for value in values]


def test_every_task_gets_as_many_episodes() -> None:
    assert [episodes_for(3, n) for n in (1, 3, 4)] == [3, 3, 6]


def test_both_evaluations_are_recorded(trained: Path) -> None:
    fixed, current = np.load(RUN / "evaluations.npz"), np.load(RUN / "evaluations_current_task.npz")
    assert fixed["timesteps"].tolist() == current["timesteps"].tolist() == [200, 400]
    # an episode for each of the three frictions; one in the current task
    assert (fixed["results"].shape, current["results"].shape) == ((2, 3), (2, 1))
    log = pd.read_csv(RUN / "progress.csv")
    scores = log[log["eval_fixed/mean_reward"].notna()]
    by_task = scores[[f"eval_fixed/friction_{value}" for value in (0.2, 0.5, 1)]].to_numpy()
    np.testing.assert_allclose(np.sort(by_task, axis=1), np.sort(fixed["results"], axis=1), rtol=1e-6)
    np.testing.assert_allclose(scores["eval_fixed/mean_reward"], fixed["results"].mean(axis=1))
    np.testing.assert_allclose(log["eval/mean_reward"].dropna(), current["results"].mean(axis=1))


def test_one_evaluation_follows_training_and_the_other_stays(tmp_path: Path) -> None:
    schedule = {"kind": "cyclic", "values": [0.2, 0.5, 1.0], "period": 100}
    spec = RunSpec(
        algo="ppo",
        env_id="SlipperyAnt-v0",
        seed=0,
        n_timesteps=320,
        eval_freq=300,
        eval_episodes=1,
        device="cpu",
        hyperparams={
            "policy": "MlpPolicy",
            "n_envs": 2,
            "n_steps": 32,
            "n_epochs": 1,
            "env_kwargs": {"schedule": schedule, "switch": "immediate"},
        },
    )
    experiment = Experiment(spec, tmp_path)
    evaluations: Any = experiment.make_evaluations()
    current, fixed = evaluations
    experiment.train(experiment.make_model(), [*experiment.make_callbacks(), current, fixed])
    # the schedule's fourth task, which has the first one's friction again
    assert [task.index for task in current.eval_env.get_attr("task")] == [3]
    assert [task.value for task in fixed.eval_env.get_attr("task")] == [0.2, 0.5, 1.0]
    assert (current.evaluations_timesteps, fixed.evaluations_timesteps) == ([300], [300])


def test_a_run_that_goes_on_keeps_its_evaluations(tmp_path: Path) -> None:
    record = tmp_path / "evaluations.npz"
    steps, results = np.array([100, 200, 300]), np.array([[1.0, 3.0], [5.0, 9.0], [20.0, 30.0]])
    np.savez(record, timesteps=steps, results=results, ep_lengths=np.ones((3, 2), dtype=int))
    env = make_nonstationary_vec_env("SlipperyAnt-v0", 1)
    taken_up = Evaluation(env, "eval", record, start=256)
    assert taken_up.evaluations_timesteps == [100, 200] and taken_up.best_mean_reward == 7
    record.write_bytes(record.read_bytes()[:100])
    with pytest.warns(UserWarning, match="evaluations.npz"):
        assert Evaluation(env, "eval", record, start=256).evaluations_timesteps == []


def test_the_best_model_is_kept_with_its_statistics(trained: Path) -> None:
    assert (RUN / "best_model.zip").is_file()
    assert (RUN / "best_model_vecnormalize.pkl").is_file()
    assert (RUN / "SlipperyAnt-v0" / "vecnormalize.pkl").is_file()


def test_tensorboard_shows_the_run_at_one_glance(trained: Path) -> None:
    events = EventAccumulator("runs/ppo_l2er/SlipperyAnt-v0_1").Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"task/index", "task/value", "train/erank_policy", "eval/mean_reward", "eval_fixed/mean_reward"} <= scalars
    tensors = set(events.Tags()["tensors"])
    assert "custom_scalars__config__" in tensors
    metadata = events.summary_metadata
    assert any("hparams" in tag for tag in metadata)


def test_the_chart_of_returns_by_task_shows_the_latest_six(tmp_path: Path) -> None:
    pole = gym.make("CartPole-v1", max_episode_steps=4)
    env = NonStationary(pole, parameter="gravity", schedule={"kind": "uniform", "low": 5, "high": 15, "period": 8})
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, tensorboard_log=str(tmp_path))
    spec = RunSpec(algo="ppo", env_id="CartPole-v1", seed=0, n_timesteps=72, hyperparams={})
    model.learn(72, callback=OverviewCallback(spec))
    events = EventAccumulator(str(tmp_path / "PPO_1")).Reload()
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    (chart,) = [chart for chart in layout.category[0].chart if chart.title.startswith("return by task")]
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("return_by_task/")]
    shown = [tag for tag in tags if re.match(chart.multiline.tag[0], tag)]
    assert [int(tag.split("/")[1]) for tag in tags] == list(range(9))
    assert [int(tag.split("/")[1]) for tag in shown] == [3, 4, 5, 6, 7, 8]


def test_monitor_files_are_what_single_environments_write(train: Callable[..., Any]) -> None:
    pytest.importorskip("mujoco.batch", reason="this MuJoCo has none", exc_type=ImportError)
    columns = {}
    for vec_env in ("batch", "dummy"):
        options = ["--algo", "ppo", *TINY, "n_steps:256", "-n", "2500", "--seed", "1", "--eval-freq", "-1"]
        status, error = train(*options, "--vec-env", vec_env, "--log-folder", vec_env)
        assert (status, error) == (0, "")
        folder = Path(vec_env) / "ppo" / "SlipperyAnt-v0_1"
        parts = [pd.read_csv(path, comment="#") for path in sorted(folder.glob("*.monitor.csv"))]
        columns[vec_env] = sorted(zip(*(pd.concat(parts)[key] for key in "rl"), strict=True))
    assert columns["batch"]
    assert columns["batch"] == columns["dummy"]


def test_a_frozen_world_is_evaluated_where_it_is(train: Callable[..., Any]) -> None:
    options = [*TINY_L2ER, "-n", "64", "--eval-freq", "64", "--eval-episodes", "1", "--env-kwargs", "task:1"]
    status, error = train("--algo", "ppo_l2er", *options)
    assert (status, error) == (0, "")
    assert np.load(RUN / "evaluations.npz")["results"].shape == (1, 1)


def test_hyperparameters_for_tensorboard_have_one_level() -> None:
    nested = {"policy_kwargs": {"net_arch": [64], "log_std_init": -1.0}, "n": 1, "x": None}
    assert flatten(nested) == {
        "policy_kwargs.net_arch": "[64]",
        "policy_kwargs.log_std_init": -1.0,
        "n": 1,
        "x": "None",
    }


@pytest.mark.parametrize("storage", ["study.log", "sqlite:///study.db"])
def test_hyperparameter_search_scores_on_the_fixed_tasks(storage: str, train: Callable[..., Any]) -> None:
    options = ["--algo", "ppo_l2er", *TINY_L2ER, "-n", "64", "--eval-episodes", "1", "--n-evaluations", "1"]
    search = ["-optimize", "--n-trials", "1", "--no-optim-plots", "--storage", storage, "--study-name", "s"]
    status, error = train(*options, *search, "--sampler", "random", "--seed", "137")
    assert status == 0, error
    assert not list(Path("logs/ppo_l2er").glob("Slippery*")), "a search is not a run that enjoy could show"
    again = ["--storage", storage, "--study-name", "s", "--trial-id", "0", "--eval-freq", "-1"]
    status, error = train(*[option for option in options if option != "n_steps:32"], *again)
    assert status == 0, error
    status, error = train(*options, *again[:-4], "--trial-id", "7")
    assert (status, "has no such trial" in error) == (2, True)


@pytest.mark.parametrize("algo", ["ppo_l2er", "ppo", "a2c", "trpo"])
def test_a_trials_rollouts_fit_its_steps(algo: str) -> None:
    """With 8 environments and 6,000 steps, eight rollouts of at most 93 steps each; the other names stay rl_zoo3's."""
    study, long = (optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)) for seed in (0, 1))
    wide = set()
    for _ in range(60):
        sampled = SAMPLERS[algo](Sized(study.ask(), 6_000 // (8 * 8)), 8, 8, {})
        assert sampled["n_steps"] <= 93 and sampled.get("batch_size", 0) <= 93
        wide.add(SAMPLERS[algo](Sized(long.ask(), 100_000), 8, 8, {})["n_steps"])
        assert ("er_coef" in sampled) == (algo == "ppo_l2er")
    assert max(wide) >= 2048
