"""``sb3-plasticity enjoy``: run a trained agent."""

import argparse

import numpy as np
from rich.progress import track

from sb3_plasticity.envs.rendering import has_display
from sb3_plasticity.zoo.trained_agent import add_agent_options, load_agent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    add_agent_options(parser)
    parser.add_argument("--reward-log", default="", metavar="DIR", help="write the returns to monitor files here")


def run(options: argparse.Namespace) -> int:
    """Run an agent, and print the returns of its episodes."""
    verbose = options.verbose > 0
    if not options.no_render and not has_display():
        print("No display: nothing is drawn (record_video makes a film)")
        options.no_render = True
    agent = load_agent(options, render_mode=None if options.no_render else "human", reward_log=options.reward_log)
    if verbose:
        print("\n".join(filter(None, [f"Model: {agent.path}", agent.task])))
    returns, finished, successes = np.zeros(options.n_envs), list[tuple[float, int]](), list[float]()
    try:
        steps = agent.steps(options.n_timesteps)
        for rewards, dones, infos in track(steps, total=options.n_timesteps) if options.progress else steps:
            if not options.no_render:
                agent.env.render("human")
            returns += rewards
            for i in np.flatnonzero(dones):
                # Monitor's: the true return, where rewards are normalised or clipped
                episode = infos[i]["episode"]
                finished.append((float(returns[i] if options.norm_reward else episode["r"]), int(episode["l"])))
                returns[i] = 0.0
                successes += [float(infos[i]["is_success"])] if infos[i].get("is_success") is not None else []
                if verbose:
                    print(f"Episode {len(finished)}: return {finished[-1][0]:.2f}, length {finished[-1][1]}")
    except KeyboardInterrupt:
        pass
    finally:
        agent.env.close()
    if verbose and finished:
        (mean, length), (deviation, spread) = np.mean(finished, axis=0), np.std(finished, axis=0)
        print(f"{len(finished)} episodes: return {mean:.2f} +/- {deviation:.2f}, length {length:.2f} +/- {spread:.2f}")
    if verbose and successes:
        print(f"Success rate: {np.mean(successes):.2%}")
    return 0
