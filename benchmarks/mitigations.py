"""
What each registered mitigation costs: its whole iteration (rollout and update) over one without it.

    python benchmarks/mitigations.py
    python benchmarks/mitigations.py --settings dohare --updates eager --names l2 l2_init

"eager" is stock PPO with a ``MitigationCallback``, over stock PPO; "compiled" is ``PPO_L2ER(compile=True)`` without
L2-ER of its own and with the callback, over the same without. The two take turns, one iteration each, and what counts
is the CPU time of the process, on one thread: the wall clock of a machine that is not alone says little. The learning
rate is 0 and both begin at the same time, so that they do the same in the same world: an ant that has fallen is
simulated at another speed than one that stands. Arguments are the defaults, but that what acts between
rollouts does so at every rollout, and that what waits for units to mature finds them mature. A ratio is the median of
the rounds and comes with a 90% interval, from their ranks; only an interval above the goal counts as a miss. Prints
tables and writes ``results/mitigations.json``, in which a mitigation, setting and kind of update that is not measured
anew stays.
"""

import argparse
import inspect
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from measure import machine, median
from scipy.stats import quantile_test
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from training import OFF, ROLLOUT, SETTINGS, arguments, environment

from sb3_plasticity import PPO_L2ER
from sb3_plasticity.mitigations import MitigationCallback, find_mitigation, names

# Not the defaults: or nothing would happen in the time that is measured.
ACTING: dict[str, dict[str, Any]] = {"continual_backprop": dict(maturity_threshold=0)}
# What a mitigation may cost, eager, in minibatches of 128; by the module that holds it, and without any.
GOALS = {"recycling": 1.15, "resets": 1.03, "injection": 1.03}
PENALTIES, NOTHING = 1.10, 1.01
CALLBACK = "(callback alone)"


def entry(name: str) -> list[dict[str, Any]]:
    """As in YAML; what acts between rollouts acts at every rollout."""
    if name == CALLBACK:
        return []
    when = {"when": 1} if "when" in inspect.signature(find_mitigation(name)).parameters else {}
    return [{name: when | ACTING.get(name, {})}]


def goal(name: str) -> float:
    """The ratio to reach, eager, in minibatches of 128."""
    if name == CALLBACK:
        return NOTHING
    cls = find_mitigation(name)
    homes = [GOALS[home] for home in (base.__module__.rpartition(".")[2] for base in cls.__mro__) if home in GOALS]
    return homes[0] if homes else PENALTIES


def agent(setting: str, compiled: bool, rollout: int) -> Any:
    """PPO as published in a setting, standing still."""
    settings: dict[str, Any] = arguments(setting) | dict(learning_rate=0.0, n_steps=rollout // SETTINGS[setting][0])
    policy_kwargs = dict(net_arch=SETTINGS[setting][1], activation_fn=nn.ReLU)
    kind: Any = PPO_L2ER if compiled else PPO
    extra: dict[str, Any] = {"compile": True, **OFF} if compiled else {}
    env = environment(setting, "dummy")
    return kind("MlpPolicy", env, device="cpu", policy_kwargs=policy_kwargs, **settings, **extra)


class Clock(BaseCallback):
    """When a rollout starts; what is done once, before the first, is not an iteration's."""

    def _on_rollout_start(self) -> None:
        self.began = time.process_time()

    def _on_step(self) -> bool:
        return True


def iterations(model: Any, rollout: int, mitigations: list[dict[str, Any]] | None) -> Callable[[], float]:
    """Let an agent train one iteration a call, and return its CPU seconds."""
    clock = Clock()
    callbacks = [clock, *([] if mitigations is None else [MitigationCallback(mitigations)])]

    def iterate() -> float:
        model.learn(rollout, callback=callbacks, reset_num_timesteps=False, log_interval=None)
        return time.process_time() - clock.began

    iterate()  # compiles, and fills the optimizer's state
    return iterate


def interval(ratios: list[float]) -> tuple[float, float]:
    """A 90% interval of the median, from the ranks of at least five rounds."""
    found = quantile_test(ratios, p=0.5).confidence_interval(0.9)
    return float(found.low), float(found.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [CALLBACK, *names()]
    parser.add_argument("--names", nargs="+", choices=known, default=known, metavar="NAME", help="default: all")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["dohare", "paper"])
    parser.add_argument("--updates", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=7, help="at least 5")
    parser.add_argument("--rollout", type=int, default=ROLLOUT, help="steps; what is done once a rollout weighs by it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mitigations.json")
    args = parser.parse_args()
    th.set_num_threads(1)
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for setting in args.settings:
        for update in args.updates:
            print(f"\n{setting}: {SETTINGS[setting][1]}, minibatch {SETTINGS[setting][2]}, {update}", flush=True)
            for name in args.names:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    plain, mitigated = (
                        iterations(agent(setting, update == "compiled", args.rollout), args.rollout, mitigations)
                        for mitigations in (None, entry(name))
                    )
                    pairs = [(plain(), mitigated()) for _ in range(args.rounds)]
                said = [str(warning.message) for warning in caught if "runs uncompiled" in str(warning.message)]
                ratios = [theirs / mine for mine, theirs in pairs]
                ratio = median(ratios)
                low, high = interval(ratios)
                row: dict[str, Any] = dict(ratio=ratio, low=low, high=high, seconds=median(mine for _, mine in pairs))
                row |= dict(rounds=args.rounds, rollout=args.rollout)
                row |= dict(machine=machine(), uncompiled=said[0] if said else None)
                results.setdefault(setting, {}).setdefault(update, {})[name] = row
                missed = low > goal(name) and (setting, update) == ("dohare", "eager")
                notes = f"  over {goal(name):.2f}" * missed + "  (runs uncompiled)" * bool(said)
                print(f"{name:>28}{ratio:>8.3f} [{low:.3f}, {high:.3f}] of the time without{notes}", flush=True)
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
