"""
Measure the effect of each piece of the compiled update, in microseconds per minibatch, with contenders taking turns.

    python benchmarks/compiled.py

"compiled" is the update of ``PPO_L2ER(compile=True)``; the others omit one piece (see ``ppo_l2er/inductor.py``).
"""

import argparse
import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch as th
from measure import machine, median
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_plasticity import PPO_L2ER
from sb3_plasticity.common import onednn
from sb3_plasticity.ppo_l2er import compiled, inductor

# name -> hidden layers, minibatch
SETTINGS: dict[str, tuple[list[int], int]] = {"paper": ([256], 16), "dohare": ([256, 256], 128)}


def by_torch_compile(guards: bool) -> Callable[..., Any]:
    """The same trace through ``torch.compile``, with its guards or, as it documents, with none of them."""

    def compile_program(policy: Any, function: Any, inputs: list[th.Tensor]) -> Any:
        copies = [tensor.clone() for tensor in inputs]
        options = dict(inductor.OPTIONS)
        if not guards:
            options["guard_filter_fn"] = th.compiler.skip_all_guards_unsafe
        with inductor.tracing(policy), inductor.quiet(), th.no_grad():
            trace = inductor.use_onednn(make_fx(function, tracing_mode="fake")(*copies))
            program = th.compile(trace, fullgraph=True, dynamic=False, options=options)
            program(*copies)
        return program

    return compile_program


def without(option: str) -> Any:
    """Compile without one of our options for inductor."""
    options = {name: value for name, value in inductor.OPTIONS.items() if name != option}
    return mock.patch.object(inductor, "OPTIONS", options)


# name -> arguments, and what is in force while its programs are compiled and run
CONTENDERS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "eager": (dict(compile=False), contextlib.nullcontext),
    "compiled": (dict(compile=True), contextlib.nullcontext),
    "torch.compile": (
        dict(compile=True),
        lambda: mock.patch.object(compiled, "compile_program", by_torch_compile(True)),
    ),
    "torch.compile, no guards": (
        dict(compile=True),
        lambda: mock.patch.object(compiled, "compile_program", by_torch_compile(False)),
    ),
    "no cpp_wrapper": (dict(compile=True), lambda: without("cpp_wrapper")),
    # One of the two is what "compiled" does on this processor.
    "oneDNN": (dict(compile=True), lambda: mock.patch.object(onednn, "is_faster", lambda: True)),
    "no oneDNN": (dict(compile=True), lambda: mock.patch.object(onednn, "is_faster", lambda: False)),
    "torch's Adam": (dict(compile=True), lambda: mock.patch.object(compiled, "is_watched", lambda _: True)),
}


def contender(setting: str, name: str, rollout: int) -> Callable[[], float]:
    """
    An agent with a full rollout.

    :param setting: a key of ``SETTINGS``
    :param name: a key of ``CONTENDERS``
    :param rollout: transitions
    :return: updates on the rollout, and returns the seconds of a minibatch
    """
    layers, batch_size = SETTINGS[setting]
    arguments, context = CONTENDERS[name]
    policy_kwargs = dict(net_arch=layers, activation_fn=nn.ReLU)
    model = PPO_L2ER(
        "MlpPolicy",
        "Pendulum-v1",
        n_steps=rollout,
        batch_size=batch_size,
        n_epochs=1,
        seed=0,
        device="cpu",
        policy_kwargs=policy_kwargs,
        **arguments,
    )

    @contextlib.contextmanager
    def nothing_learned() -> Iterator[None]:
        with mock.patch.object(model, "train"):
            yield

    with nothing_learned():
        model.learn(rollout)

    def update() -> float:
        began = time.perf_counter()
        with context():
            model.train()
        return (time.perf_counter() - began) / (rollout // batch_size)

    update()  # compiles
    return update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rollout", type=int, default=2048)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/compiled.json"))
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.filterwarnings("error", message="compile=True")  # or the eager update would be timed
    results: dict[str, Any] = {"machine": machine(), "settings": {}}
    for setting in args.settings:
        updates = {name: contender(setting, name, args.rollout) for name in args.contenders}
        turns: dict[str, list[float]] = {name: [] for name in updates}
        for turn in range(args.rounds):
            for name in list(updates)[:: 1 if turn % 2 == 0 else -1]:
                turns[name].append(updates[name]())
        print(f"\n{setting}: {SETTINGS[setting][0]}, minibatch {SETTINGS[setting][1]}")
        rows = results["settings"][setting] = {}
        for name, seconds in turns.items():
            pairs = zip(seconds, turns.get("compiled", seconds), strict=True)
            rows[name] = dict(microseconds=1e6 * median(seconds), ratio=median(one / other for one, other in pairs))
            print(f"{name:>26}{rows[name]['microseconds']:>10,.0f} us{rows[name]['ratio']:>8.2f} x compiled")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
