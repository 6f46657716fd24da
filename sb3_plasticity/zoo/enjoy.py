"""``sb3-plasticity enjoy``: run a trained agent."""

import argparse

import numpy as np
from rich.progress import track

from sb3_plasticity.envs.rendering import has_display
from sb3_plasticity.zoo.options import add_agent_options
from sb3_plasticity.zoo.shown import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's options.

    :param parser: of the command
    """
    add_agent_options(parser)
    parser.add_argument("--reward-log", default="", metavar="DIR", help="write the returns to monitor files here")


def run(options: argparse.Namespace) -> int:
    """
    Run an agent, and print the returns of its episodes.

    :param options: of the command line
    :return: exit status
    """
    verbose = options.verbose > 0
    if not options.no_render and not has_display():
        print("No display: nothing is drawn (record_video makes a film)")
        options.no_render = True
    shown = show(options, render_mode=None if options.no_render else "human", reward_log=options.reward_log)
    if verbose:
        print("\n".join(filter(None, [f"Model: {shown.path}", shown.task])))
    returns, lengths, successes = np.zeros(options.n_envs), np.zeros(options.n_envs, dtype=int), list[float]()
    finished: list[tuple[float, int]] = []
    try:
        steps = shown.steps(options.n_timesteps)
        for rewards, dones, infos in track(steps, total=options.n_timesteps) if options.progress else steps:
            if not options.no_render:
                shown.env.render("human")
            returns, lengths = returns + rewards, lengths + 1
            for i in np.flatnonzero(dones):
                # Monitor's: the true return, where rewards are normalised or clipped
                episode = infos[i].get("episode", {})
                value = float(returns[i]) if options.norm_reward else float(episode.get("r", returns[i]))
                finished.append((value, int(episode.get("l", lengths[i]))))
                returns[i], lengths[i] = 0.0, 0
                successes += [float(infos[i]["is_success"])] if infos[i].get("is_success") is not None else []
                if verbose:
                    print(f"Episode {len(finished)}: return {finished[-1][0]:.2f}, length {finished[-1][1]}")
    except KeyboardInterrupt:
        pass
    finally:
        shown.env.close()
    if verbose and finished:
        (mean, length), (deviation, spread) = np.mean(finished, axis=0), np.std(finished, axis=0)
        print(f"{len(finished)} episodes: return {mean:.2f} +/- {deviation:.2f}, length {length:.2f} +/- {spread:.2f}")
    if verbose and successes:
        print(f"Success rate: {np.mean(successes):.2%}")
    return 0
