"""
Measure the speed of environments and of training, as ratios between contenders that take turns in one run.

    python benchmarks/throughput.py --part envs        environments
    python benchmarks/throughput.py --part training    whole iterations of PPO

Absolute numbers depend on the machine and its load. Contenders that alternate within seconds are affected equally, so
their ratios are reliable. Each part prints a table and writes a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from measure import machine
from training import AGENTS, SETTINGS, run_training

Contender = Callable[[], int]
"""Does some work and returns how many steps it was."""


def interleave(contenders: dict[str, Contender], rounds: int, seconds: float) -> dict[str, list[float]]:
    """
    Let contenders take turns.

    :param contenders: by name
    :param rounds: how many turns each takes
    :param seconds: about how long one turn lasts
    :return: steps per second of each turn
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        # alternate the order, so that nobody always runs behind the same other
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            steps, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                steps += contenders[name]()
            rates[name].append(steps / elapsed)
    return rates


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float | None:
    """Median over the turns of one contender's speed over another's."""
    if one not in rates or other not in rates:
        return None
    return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))


def run_envs(args: argparse.Namespace) -> dict[str, Any]:
    """Environment steps per second: raw physics, our batch, SB3's vectorised envs and, where installed, EnvPool."""
    results: dict[str, Any] = {"env": args.env, "sizes": {}}
    for n_envs in args.n_envs:
        contenders, close = env_contenders(args, n_envs)
        for contender in contenders.values():
            contender()  # first calls allocate
        rates = interleave(contenders, args.rounds, args.seconds)
        close()
        results["sizes"][n_envs] = {
            "steps_per_second": {name: statistics.median(rate) for name, rate in rates.items()},
            "batch_over_raw": ratio(rates, "MujocoBatchVecEnv", "raw mujoco.batch"),
            "episode_infos_over_raw": ratio(rates, 'MujocoBatchVecEnv, infos="episode"', "raw mujoco.batch"),
            "make_vec_over_raw": ratio(rates, "gymnasium.make_vec", "raw mujoco.batch"),
            "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "batch_over_dummy": ratio(rates, "MujocoBatchVecEnv", "DummyVecEnv"),
            "batch_over_subproc": ratio(rates, "MujocoBatchVecEnv", "SubprocVecEnv"),
        }
    results["batch_cost_512_over_64"] = cost_ratio(args, 512, 64)
    print_envs(results)
    return results


def env_contenders(args: argparse.Namespace, n_envs: int) -> tuple[dict[str, Contender], Callable[[], None]]:
    from mujoco.batch import Batch

    from sb3_plasticity.vec_env import MujocoBatchVecEnv, make_nonstationary_vec_env

    batch_env = MujocoBatchVecEnv(args.env, n_envs, seed=0, n_threads=args.threads)
    batch_env.reset()
    ours = batch_env._sims.batch
    space = batch_env.action_space
    assert isinstance(space, Box)
    # one call should last well under one turn, whatever the number of environments
    shape = (min(64, max(8, 4096 // n_envs)), n_envs, *space.shape)
    actions = np.random.default_rng(0).uniform(space.low, space.high, shape).astype(np.float32)

    raw = Batch(ours.model, n_envs, args.threads)
    raw.expand("geom_friction")[:] = ours.expand("geom_friction")
    frame_skip = batch_env.get_attr("frame_skip", 0)[0]

    def raw_physics() -> int:
        # from the states that the environments are in: physics costs what its contacts cost
        raw.state[:] = ours.state
        ctrl = raw.bind("ctrl")
        for action in actions:
            ctrl[:] = action
            raw.step(nstep=frame_skip)
        return shape[0] * n_envs

    def steps_of(env: Any) -> Contender:
        def run() -> int:
            for action in actions:
                env.step(action)
            return shape[0] * n_envs

        return run

    brief_env = MujocoBatchVecEnv(args.env, n_envs, seed=0, n_threads=args.threads, infos="episode")
    vector_env = gym.make_vec(args.env, n_envs, n_threads=args.threads)
    brief_env.reset(), vector_env.reset(seed=0)
    contenders = {
        "raw mujoco.batch": raw_physics,
        "MujocoBatchVecEnv": steps_of(batch_env),
        'MujocoBatchVecEnv, infos="episode"': steps_of(brief_env),
        "gymnasium.make_vec": steps_of(vector_env),
    }
    envs: list[Any] = [batch_env, brief_env, vector_env]
    for name, backend, most in (
        ("DummyVecEnv", "dummy", args.max_dummy),
        ("SubprocVecEnv", "subproc", args.max_processes),
    ):
        if n_envs <= most:
            env = make_nonstationary_vec_env(args.env, n_envs, seed=0, backend=backend)
            env.reset()
            envs.append(env)
            contenders[name] = steps_of(env)
    try:
        import envpool
    except ImportError:
        pass
    else:
        # EnvPool knows the stationary parents
        parent = args.env.replace("Slippery", "").replace("-v0", "-v5")
        pool = envpool.make(parent, env_type="gymnasium", num_envs=n_envs, num_threads=args.threads or os.cpu_count())
        pool.reset()
        envs.append(pool)
        contenders[f"EnvPool {parent}"] = steps_of(pool)

    def close() -> None:
        for env in envs:
            env.close()

    return contenders, close


def cost_ratio(args: argparse.Namespace, many: int, few: int) -> float | None:
    """Cost of one env step in a batch of many over that in a batch of few, measured turn by turn."""
    if many not in args.n_envs or few not in args.n_envs:
        return None
    both = {
        n: env_contenders(argparse.Namespace(**{**vars(args), "max_dummy": 0, "max_processes": 0}), n)
        for n in (many, few)
    }
    contenders = {str(n): made["MujocoBatchVecEnv"] for n, (made, _) in both.items()}
    for contender in contenders.values():
        contender()
    rates = interleave(contenders, args.rounds, args.seconds)
    for _, close in both.values():
        close()
    return ratio(rates, str(few), str(many))


def print_envs(results: dict[str, Any]) -> None:
    sizes = results["sizes"]
    names = list(dict.fromkeys(name for size in sizes.values() for name in size["steps_per_second"]))
    print(f"\nEnv steps per second, {results['env']}")
    print(f"{'environments':>36}" + "".join(f"{n:>10}" for n in sizes))
    for name in names:
        cells = [size["steps_per_second"].get(name) for size in sizes.values()]
        print(f"{name:>36}" + "".join(f"{'-':>10}" if cell is None else f"{cell:>10,.0f}" for cell in cells))
    ratios = ("batch_over_raw", "episode_infos_over_raw", "make_vec_over_raw", "batch_over_dummy", "batch_over_subproc")
    for key in (*ratios, "peak_memory_MiB"):
        cells = [size[key] for size in sizes.values()]
        print(f"{key:>36}" + "".join(f"{'-':>10}" if cell is None else f"{cell:>10.2f}" for cell in cells))
    if results["batch_cost_512_over_64"] is not None:
        print(f"Cost per env step in a batch, 512 over 64 environments: {results['batch_cost_512_over_64']:.3f}")


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"envs": run_envs, "training": run_training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")
    envs = parser.add_argument_group("part envs")
    envs.add_argument("--env", default="SlipperyAnt-v0")
    envs.add_argument("--n-envs", type=int, nargs="+", default=[1, 8, 64, 512, 4096])
    envs.add_argument("--threads", type=int, default=0, help="of the batches, 0 for one per CPU")
    envs.add_argument("--max-dummy", type=int, default=512, help="most environments in a DummyVecEnv")
    envs.add_argument("--max-processes", type=int, default=8, help="most environments in a SubprocVecEnv")
    training = parser.add_argument_group("part training (rounds: iterations of each agent)")
    training.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    training.add_argument("--agents", nargs="+", choices=list(AGENTS), default=list(AGENTS))
    training.add_argument("--torch-threads", type=int, default=1)
    args = parser.parse_args()
    results = {"machine": machine(), "rounds": args.rounds, "seconds": args.seconds, **PARTS[args.part](args)}
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"throughput_{args.part}.json"
    file.write_text(json.dumps(results, indent=2) + "\n")
    print(f"Written to {file}")


if __name__ == "__main__":
    main()
