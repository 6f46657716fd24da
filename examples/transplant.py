"""
Tell whether an agent stagnates because of its exploration or because of the weights of its networks.

This continues a checkpoint on a single task, with the standard deviation of its actions, the weights of its networks,
or both replaced by those of a new agent:

    python examples/transplant.py runs/slippery_ant/SlipperyAnt-v0/PPO/seed_0/rl_model_5994496_steps.zip \
        --task 3 --new exploration --out runs/transplant/exploration

The checkpoint must be that of an on-policy algorithm with a Gaussian policy, in the folder of its run, which must not
have wrapped or normalised its environments. What is replaced loses its moments of Adam as well. Everything else stays:
hyperparameters, the rest of the moments, and the environments with their settings, at a frozen task.
"""

import argparse
from pathlib import Path

import torch as th
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_plasticity import make_nonstationary_vec_env
from sb3_plasticity.zoo.algorithms import ALGOS
from sb3_plasticity.zoo.folder import RunFolder

EXPLORATION = "log_std"
# Entries of a configuration that this does not rebuild.
UNSUPPORTED = ("normalize", "frame_stack", "env_wrapper", "vec_env_wrapper")
PARTS = ("nothing", "exploration", "weights", "everything")


def transplant(model: OnPolicyAlgorithm, new: str) -> list[str]:
    """
    Replace a part of an agent's policy by that of a new agent.

    :param model: whose policy is changed in place
    :param new: ``"nothing"``, ``"exploration"`` (the standard deviation of its actions), ``"weights"`` (all the other
        parameters) or ``"everything"``
    :return: names of the parameters that were replaced
    """
    fresh = model.policy_class(
        model.observation_space, model.action_space, model.lr_schedule, use_sde=model.use_sde, **model.policy_kwargs
    )
    donors = dict(fresh.named_parameters())
    replaced = []
    for name, parameter in model.policy.named_parameters():
        if new in ("everything", "exploration" if name == EXPLORATION else "weights"):
            parameter.data.copy_(donors[name].data)
            model.policy.optimizer.state.pop(parameter, None)
            replaced.append(name)
    return replaced


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a saved model in the folder of its run")
    parser.add_argument("--task", type=int, required=True, help="index of the task to train on")
    parser.add_argument("--new", choices=PARTS, required=True, help="what to take from a new agent")
    parser.add_argument("--steps", type=int, default=2_000_000, help="environment steps (default: 2,000,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the new agent and the environments (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="new folder for progress.csv and the model")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"`out` must be a folder that does not exist, got {args.out}")
    run = RunFolder(args.checkpoint.parent).description()
    if not run:
        parser.error(f"`checkpoint` must be in the folder of its run, got {args.checkpoint}")
    entry = run["hyperparams"]
    if wrapped := [key for key in UNSUPPORTED if entry.get(key)]:
        parser.error(f"`checkpoint` must be of a run without {', '.join(UNSUPPORTED)}, got one with {wrapped[0]}")
    th.set_num_threads(1)
    kwargs = {**(entry.get("env_kwargs") or {}), "task": args.task}
    env = make_nonstationary_vec_env(run["env"], entry.get("n_envs", 1), seed=args.seed, env_kwargs=kwargs)
    model = ALGOS[run["algo"]].load(args.checkpoint, env=env)
    model.set_random_seed(args.seed)
    if not isinstance(model, OnPolicyAlgorithm) or not hasattr(model.policy, EXPLORATION):
        parser.error("`checkpoint` must be of an on-policy algorithm with a Gaussian policy, got " + run["algo"])
    args.out.mkdir(parents=True)
    replaced = transplant(model, args.new)
    print(f"{len(replaced)} parameters are new: {', '.join(replaced) or 'none'}")
    model.set_logger(configure(str(args.out), ["csv"]))
    model.learn(args.steps, progress_bar=True)
    model.save(args.out / "model.zip")


if __name__ == "__main__":
    main()
