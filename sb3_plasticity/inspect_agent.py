"""``sb3-plasticity inspect``: what a saved agent has left of its ability to learn, beside fresh networks."""

import argparse
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import nn

from sb3_plasticity.agents import networks_of, objectives_of, source_of
from sb3_plasticity.agents.fresh import fresh_policy
from sb3_plasticity.agents.problems import curvature_problem
from sb3_plasticity.callbacks.measuring import AgentMeasures, Measures
from sb3_plasticity.callbacks.metrics import DEFAULT_METRICS, trainability
from sb3_plasticity.callbacks.plasticity import CONTROL_SEED
from sb3_plasticity.common.files import replacing
from sb3_plasticity.common.functional import evaluation_mode
from sb3_plasticity.common.rollout import last_samples
from sb3_plasticity.curvature.ggn import ggn_spectrum
from sb3_plasticity.curvature.jacobian import ProblemTooLargeError
from sb3_plasticity.curvature.plots import plot_density
from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.zoo import checkpoints
from sb3_plasticity.zoo.algorithms import ALGOS
from sb3_plasticity.zoo.commands import whole
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.options import StoreValues, check_known
from sb3_plasticity.zoo.trained_agent import make_world, model_path, spec_of

# Fresh networks that an agent is held against.
N_FRESH = 3
# Transitions that metrics, and spectra, are taken on.
N_SAMPLES, N_SPECTRUM = 512, 128
# Of the refit to random targets: half the metric's default, a [256, 256] agent should not take a minute.
PROBE_STEPS = 50
# A measure differs if it lies further from the fresh networks' than they from each other, and by this share.
TOLERANCE = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's options.

    :param parser: of the command
    """
    add = parser.add_argument
    add("run", help="a saved model (.zip), or the folder of a run")
    add("--env", default="", help="environment id of a model that lies in no run's folder")
    add("--algo", default="", help="algorithm of such a model, where its file does not tell")
    add("--steps", type=whole(2), default=2048, help="transitions to collect (default: 2048)")
    add("--task", type=whole(0), help="index of the task to act in (default: follow the clock)")
    add("--out", type=Path, help="folder for the table, the spectra and the picture (default: beside the model)")
    add("--n-envs", type=whole(1), default=1, help="environments (default: 1)")
    add("--seed", type=whole(0), default=0, help="of the environments (default: 0)")
    add("--device", default="auto", help="PyTorch's device (default: auto)")
    add("--gym-packages", nargs="+", default=[], help="packages that register further environments")
    add("--env-kwargs", nargs="+", action=StoreValues, help="keywords of the environment, as key:value")
    parser.set_defaults(
        folder="logs", exp_id=0, load_best=False, load_checkpoint=None, load_last_checkpoint=False, norm_reward=True
    )


def run(options: argparse.Namespace) -> int:
    """
    Print the measures of a saved agent beside those of fresh networks, and save its spectra and a picture.

    :param options: of the command line
    :return: exit status
    """
    path = model_path(options)
    model, env, task = load(path, options)
    out = path.parent / f"{path.stem}_inspect" if options.out is None else options.out
    trained = model.num_timesteps
    try:
        samples = collect(model, options.steps)
    finally:
        env.close()
    table, spectra = examine(model, samples)
    print("\n".join(filter(None, [f"Model: {path} ({type(model).__name__}, {trained} steps)", task])))
    print(f"{options.steps} transitions; beside each measure the range of {N_FRESH} fresh networks'\n")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(f"\n{summary(table)}")
    save(out, table, spectra, f"{path.name}: {type(model).__name__} after {trained:,} steps")
    print(f"Written to {out}")
    return 0


def load(path: Path, options: argparse.Namespace) -> tuple[BaseAlgorithm, VecEnv, str]:
    """
    Load a model into its world.

    :param path: of the zip file
    :param options: of the command line
    :return: the model with its environments, these, and name and value of their task
    :raises UsageError: for a file that is no whole model, an environment that does not fit, missing statistics
    """
    data = checkpoints.read_checkpoint(path)
    spec = spec_of(path, options)
    if not spec.env_id:
        raise UsageError(f"{path} lies in no run's folder: --env says which environment it acts in")
    check_known(spec.algo, spec.env_id, [*spec.gym_packages, *options.gym_packages])
    algorithm = ALGOS[spec.algo] if spec.algo else algorithm_of(data, path)
    # A model's own folder may have statistics without any file that speaks of normalisation.
    beside = [checkpoints.statistics_path(path), path.parent / "vecnormalize.pkl"]
    statistics = next((file for file in beside if file.is_file()), None)
    if statistics is None and was_normalised(data, algorithm):
        raise UsageError(f"{path}: it acts on normalised observations, and {beside[1].name} is missing beside it")
    try:
        env, task = make_world(path, spec, options)
        if statistics is not None and unwrap_vec_normalize(env) is None:
            env = VecNormalize.load(str(statistics), env)
            env.training = False
        keywords: dict[str, Any] = {"device": options.device, "tensorboard_log": None, "verbose": 0}
        if issubclass(algorithm, OffPolicyAlgorithm):
            keywords |= {"buffer_size": options.steps + env.num_envs, "learning_starts": 0}
            # DQN's target network is left as it is
            keywords |= {name: 2**62 for name in ("target_update_interval",) if name in data}
        elif "n_steps" in data:
            keywords["n_steps"] = -(-options.steps // env.num_envs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of minibatches: nothing is trained
            model: BaseAlgorithm = algorithm.load(path, env=env, **keywords)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path} in {spec.env_id}: {error}") from error
    return model, env, task


def was_normalised(data: Mapping[str, Any], algorithm: type[BaseAlgorithm]) -> bool:
    """
    Tell whether a model was trained behind a VecNormalize, which its file does not hold.

    :param data: attributes of the model
    :param algorithm: of the model; off-policy ones keep their last observation in any case and do not tell
    :return: True if it certainly was
    """
    return issubclass(algorithm, OnPolicyAlgorithm) and data.get("_last_original_obs") is not None


def algorithm_of(data: Mapping[str, Any], path: Path) -> type[BaseAlgorithm]:
    """
    Tell a saved model's algorithm: the one whose policy it has most exactly, and then most of whose arguments.

    :param data: attributes of the model
    :param path: of its file
    :return: one of the zoo's algorithms, or of those that are registered with the instruments
    :raises UsageError: if none fits
    """
    found: list[tuple[int, int, type[BaseAlgorithm]]] = []
    policy = data["policy_class"]
    lineage = policy.__mro__ if isinstance(policy, type) else ()
    registered = [one for one in objectives_of.registry if issubclass(one, BaseAlgorithm)]
    for algorithm in dict.fromkeys([*ALGOS.values(), *registered]):
        aliases = getattr(algorithm, "policy_aliases", {}).values()
        arguments = set(inspect.signature(algorithm.__init__).parameters) - {"self", "policy", "env", "preset"}
        own = {name for name in arguments if not name.startswith("_")}
        known = {name for name in own if name in data}
        if distances := [lineage.index(alias) for alias in aliases if alias in lineage]:
            found.append((-min(distances), 2 * len(known) - len(own), algorithm))
    if not found:
        raise UsageError(f"{path}: its algorithm is not known; --algo says which it is: one of {', '.join(ALGOS)}")
    return max(found, key=lambda entry: entry[:2])[2]


def collect(model: BaseAlgorithm, steps: int) -> Any:
    """
    Let an agent act as it does in training, without training.

    :param model: with environments; its buffer takes so many steps
    :param steps: transitions
    :return: those, spread evenly over time where there are more than the metrics take
    """
    model.train = lambda *_args, **_kwargs: None  # type: ignore[attr-defined]
    with th.no_grad():
        model.learn(steps, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
    source = source_of(model)
    if isinstance(model, OnPolicyAlgorithm):
        part = source.latest(source.rounded(min(N_SAMPLES, steps)))  # spread over the rollout
        return source.read([part])
    rows = source.latest(steps)
    return source.read([rows[np.linspace(0, len(rows) - 1, min(N_SAMPLES, len(rows))).round().astype(int)]])


def examine(model: BaseAlgorithm, samples: Any) -> tuple[pd.DataFrame, dict[tuple[str, str], Spectrum]]:
    """
    Measure an agent and fresh networks of its kind on the same transitions.

    :param model: the agent
    :param samples: transitions
    :return: a row for each network and measure, and the spectra by network and whose they are
    """
    metrics = [*DEFAULT_METRICS, trainability(PROBE_STEPS)]
    roots: list[nn.Module] = [model.policy]
    roots += [fresh_policy(model, CONTROL_SEED + index) for index in range(N_FRESH)]
    measured: list[Measures] = []
    spectra: dict[tuple[str, str], Spectrum] = {}
    for place, root in enumerate(roots):
        with evaluation_mode(root):
            measures = AgentMeasures(model, root, metrics).measure(samples)
            for network, spectrum in _spectra(model, root, samples):
                measures |= {f"{network}/ggn_{name}": float(v) for name, v in spectrum.measures((1e-2,)).items()}
                measures.pop(f"{network}/ggn_negative_fraction", None)  # a GGN has none
                measures.pop(f"{network}/ggn_smallest", None)
                if place < 2:
                    spectra[network, "fresh" if place else "own"] = spectrum
        measured.append({key: value for key, value in measures.items() if key.count("/") == 1})
    own, *fresh = measured
    rows = [_row(key, value, [one[key] for one in fresh]) for key, value in own.items() if key in fresh[0]]
    order = list(networks_of(model))
    rows.sort(key=lambda row: order.index(row["network"]))
    return pd.DataFrame(rows), spectra


def _spectra(model: BaseAlgorithm, root: nn.Module, samples: Any) -> Iterator[tuple[str, Spectrum]]:
    fewer = last_samples(samples, N_SPECTRUM)
    objectives = objectives_of(model)
    for network in networks_of(model):
        problem = curvature_problem(root, objectives[network], fewer)
        try:
            spectrum = ggn_spectrum(problem.output_fn, problem.params, problem.samples, problem.output_hessian)
        except ProblemTooLargeError as error:
            problem = curvature_problem(root, objectives[network], last_samples(fewer, error.max_samples))
            spectrum = ggn_spectrum(problem.output_fn, problem.params, problem.samples, problem.output_hessian)
        info = dict(step=model.num_timesteps, network=network, kind="ggn", n_samples=len(problem.output_hessian))
        yield network, replace(spectrum, info=info)


def _row(key: str, own: float, fresh: Sequence[float]) -> dict[str, Any]:
    network, measure = key.split("/")
    low, high = min(fresh), max(fresh)
    margin = max(high - low, TOLERANCE * max(abs(low), abs(high)))
    verdict = "lower" if own < low - margin else "higher" if own > high + margin else "no difference"
    row = dict(network=network, measure=measure, own=own, fresh_low=low, fresh_high=high)
    return row | {"verdict": verdict}


def summary(table: pd.DataFrame) -> str:
    """
    Say in words what differs and what does not.

    :param table: of :func:`examine`
    :return: a sentence or two for each network
    """
    lines = []
    for network, rows in table.groupby("network", sort=False):
        differing = rows[rows.verdict != "no difference"]
        named = ", ".join(f"{row.measure} is {row.verdict}" for row in differing.itertuples())
        lines.append(f"{network}: {named or 'nothing differs from a fresh network'}.")
        refit = rows[rows.measure == "trainability"]
        if len(refit):
            row = refit.iloc[0]
            words = {
                "no difference": "learns new targets as well as a fresh network",
                "higher": "learns new targets less well than a fresh network",
                "lower": "learns new targets better than a fresh network",
            }
            lines.append(
                f"  It {words[row.verdict]} (error {row.own:.3g}, {row.fresh_low:.3g} to {row.fresh_high:.3g})."
            )
    return "\n".join(lines)


def save(out: Path, table: pd.DataFrame, spectra: Mapping[tuple[str, str], Spectrum], title: str) -> None:
    """
    Write the table, the agent's spectra and a picture of them.

    :param out: folder; files of an earlier inspection are replaced
    :param table: of :func:`examine`
    :param spectra: of :func:`examine`
    :param title: of the picture
    """
    with replacing(out / "measures.csv") as path:
        table.to_csv(path, index=False)
    names = list(dict.fromkeys(network for network, _ in spectra))
    figure = Figure(figsize=(5 * len(names), 3.5), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        spectra[network, "own"].save(out / f"{network}_ggn.npz", overwrite=True)
        plot_density(axes, spectra[network, "fresh"], label="fresh", color="0.6")
        plot_density(axes, spectra[network, "own"], label="saved", color="C0")
        axes.set_title(f"GGN of the {network}")
        axes.legend()
    figure.suptitle(title)
    with replacing(out / "inspect.png") as path:
        figure.savefig(path, dpi=120)
