"""Part ``training`` of ``throughput.py``: iterations of PPO with SB3, SBX and this package."""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch as th
from measure import median
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_plasticity import PPO_L2ER, make_nonstationary_vec_env

ENV_ID = "SlipperyAnt-v0"
# name -> environments, hidden layers, minibatch; a rollout has 2,048 steps and the update 10 epochs in all of them
SETTINGS: dict[str, tuple[int, list[int], int]] = {
    "paper": (1, [256], 16),
    "paper-8-envs": (8, [256], 16),
    "dohare": (8, [256, 256], 128),
}
ROLLOUT = 2048


class Phases(BaseCallback):
    """Where an iteration's time goes."""

    def __init__(self) -> None:
        super().__init__()
        self.rollout = 0.0

    def _on_rollout_start(self) -> None:
        self.began = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollout += time.perf_counter() - self.began


def arguments(setting: str) -> dict[str, Any]:
    """The published hyper-parameters (lop-jax, Dohare et al. 2024) of a setting."""
    n_envs, _, batch_size = SETTINGS[setting]
    return dict(
        learning_rate=1e-4,
        n_steps=ROLLOUT // n_envs,
        batch_size=batch_size,
        n_epochs=10,
        clip_range=0.2,
        ent_coef=0.01,
        vf_coef=1.0,
        max_grad_norm=1e9,
        seed=0,
    )


def environment(setting: str, backend: str) -> VecEnv:
    """SlipperyAnt as published: the control cost sees the raw action."""
    return make_nonstationary_vec_env(ENV_ID, SETTINGS[setting][0], 0, backend, {"action_bound": 10.0})


def contenders(setting: str, names: list[str]) -> dict[str, Callable[[], tuple[float, float]]]:
    """
    Agents that each train one iteration a call.

    :param setting: a key of ``SETTINGS``
    :param names: keys of ``AGENTS``
    :return: name -> function that returns the seconds of an iteration and those of its rollout
    """
    made: dict[str, Callable[[], tuple[float, float]]] = {}
    for name in names:
        try:
            model = AGENTS[name](setting)
        except ImportError:
            print(f"  {name}: not installed")
            continue

        def iterate(model: Any = model) -> tuple[float, float]:
            phases = Phases()
            began = time.perf_counter()
            model.learn(ROLLOUT, callback=phases, reset_num_timesteps=False, log_interval=None)
            return time.perf_counter() - began, phases.rollout

        made[name] = iterate
    return made


def stock(setting: str) -> PPO:
    policy_kwargs = dict(net_arch=SETTINGS[setting][1], activation_fn=nn.ReLU)
    return PPO(
        "MlpPolicy", environment(setting, "dummy"), device="cpu", policy_kwargs=policy_kwargs, **arguments(setting)
    )


def ours(setting: str, **extra: Any) -> PPO_L2ER:
    policy_kwargs = dict(net_arch=SETTINGS[setting][1], activation_fn=nn.ReLU)
    settings = arguments(setting) | dict(policy_kwargs=policy_kwargs) | extra
    return PPO_L2ER("MlpPolicy", environment(setting, "batch"), device="cpu", **settings)


def sbx(setting: str) -> Any:
    import flax.linen
    from sbx import PPO as SBXPPO

    policy_kwargs = dict(net_arch=SETTINGS[setting][1], activation_fn=flax.linen.relu)
    return SBXPPO("MlpPolicy", environment(setting, "dummy"), policy_kwargs=policy_kwargs, **arguments(setting))


OFF = dict(er_coef=0.0, l2_coef=0.0)
STEP = dict(er_mode="step", er_coef=1e-6)
AGENTS: dict[str, Callable[[str], Any]] = {
    "SB3 PPO": stock,
    "SBX PPO": sbx,
    "eager off": lambda setting: ours(setting, **OFF),
    "eager step": lambda setting: ours(setting, **STEP),
    "eager loss": lambda setting: ours(setting),
    "compiled off": lambda setting: ours(setting, compile=True, **OFF),
    "compiled step": lambda setting: ours(setting, compile=True, **STEP),
    "compiled loss": lambda setting: ours(setting, compile=True),
}


def run_training(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an iteration of 2,048 steps, its rollout and its update; medians, and ratios turn by turn."""
    th.set_num_threads(args.torch_threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    results: dict[str, Any] = {"torch_threads": args.torch_threads, "settings": {}}
    for setting in args.settings:
        print(f"\n{setting}: {SETTINGS[setting][0]} env, {SETTINGS[setting][1]}, minibatch {SETTINGS[setting][2]}")
        agents = contenders(setting, args.agents)
        warm_up = {name: iterate()[0] for name, iterate in agents.items()}
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in agents}
        for turn in range(args.rounds):
            for name in list(agents)[:: 1 if turn % 2 == 0 else -1]:
                turns[name].append(agents[name]())
        rows = {}
        for name, seconds in turns.items():
            total = median(total for total, _ in seconds)
            rollout = median(rollout for _, rollout in seconds)
            row: dict[str, Any] = dict(
                steps_per_second=ROLLOUT / total, rollout=rollout, update=total - rollout, first_iteration=warm_up[name]
            )
            for other in ("SB3 PPO", "SBX PPO"):
                if other in turns:
                    pairs = zip(turns[other], seconds, strict=True)
                    row[f"over {other}"] = median(theirs / mine for (theirs, _), (mine, _) in pairs)
            rows[name] = row
        results["settings"][setting] = rows
        print_rows(rows)
    return results


def print_rows(rows: dict[str, dict[str, float]]) -> None:
    heads = ["steps/s", "rollout s", "update s", "first s", "x SB3", "x SBX"]
    keys = ["steps_per_second", "rollout", "update", "first_iteration", "over SB3 PPO", "over SBX PPO"]
    print(f"{'':>16}" + "".join(f"{head:>11}" for head in heads))
    for name, row in rows.items():
        cells = [row.get(key) for key in keys]
        digits = [0, 3, 3, 1, 2, 2]
        shown = [f"{'-':>11}" if c is None else f"{c:>11,.{d}f}" for c, d in zip(cells, digits, strict=True)]
        print(f"{name:>16}" + "".join(shown))
