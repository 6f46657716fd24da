"""What every registered mitigation keeps: a resumed run is the uninterrupted one, and no hook is left behind."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from acting import ACTING, labels, make_acting, n_hooks, ours
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch.utils import _pytree as pytree

from sb3_plasticity.mitigations import MitigationCallback, attachments_of


def test_the_table_covers_the_registry() -> None:
    assert {name for name, _ in ACTING} == ours()


class SaveAt(BaseCallback):
    """
    Save between two rollouts, as the zoo does, before other callbacks act there; and keep what SB3 does not save.

    :param step: the first rollout that begins there or later
    """

    def __init__(self, path: Path, step: int) -> None:
        super().__init__()
        self.path, self.step = path, step
        self.around: Any = None

    def _on_rollout_start(self) -> None:
        if self.around is None and self.num_timesteps >= self.step:
            self.model.save(self.path)
            self.around = copy.deepcopy((self.model.env, getattr(self.model, "replay_buffer", None)))
            self.generators = random.getstate(), np.random.get_state(), th.get_rng_state()  # noqa: NPY002

    def _on_step(self) -> bool:
        return True

    def load(self, kind: type[BaseAlgorithm]) -> Any:
        """The model as it was, generators, environment and replay included."""
        env, replay = copy.deepcopy(self.around)
        model: Any = kind.load(self.path, env=env, force_reset=False)
        model.set_env(env, force_reset=False)
        if replay is not None:
            model.replay_buffer = replay
        python, numpy, torch = self.generators
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        th.set_rng_state(torch)
        return model


def everything(model: Any) -> dict[str, Any]:
    """Weights, optimizers' states and, where there is one, the mitigations'."""
    state = model.get_parameters()
    live = getattr(model, "mitigation_state", None)
    return {**state, "mitigations": {} if live is None or isinstance(live, dict) else live.state_dict()}


def differences(one: Any, other: Any) -> list[Any]:
    """Paths at which two states differ."""
    left, right = (dict(pytree.tree_flatten_with_path(state)[0]) for state in (one, other))
    found = list(left.keys() ^ right.keys())

    def same(a: Any, b: Any) -> bool:
        return bool(th.equal(a, b) if isinstance(a, th.Tensor) else a == b)

    return found + [path for path in left.keys() & right.keys() if not same(left[path], right[path])]


def weights_differ(one: Any, other: Any) -> bool:
    return bool(differences(one.policy.state_dict(), other.policy.state_dict()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For each algorithm, an agent without mitigations after half of the training."""
    found = {}
    for algorithm in ("PPO", "SAC"):
        saver = SaveAt(tmp_path_factory.mktemp(algorithm) / "half.zip", 48)
        model = make_acting(algorithm).learn(96, callback=saver)
        found[algorithm] = saver.load(type(model))
    return found


@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
@pytest.mark.parametrize(("name", "arguments"), ACTING, ids=labels(ACTING))
def test_a_resumed_run_is_the_uninterrupted_one(
    name: str, arguments: dict[str, Any], algorithm: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    if name == "rank_ascent" and algorithm == "SAC":
        pytest.skip("rank_ascent is for on-policy algorithms")

    def mitigating() -> MitigationCallback:
        return MitigationCallback([{name: arguments}])

    saver = SaveAt(tmp_path / "half.zip", 48)
    whole = make_acting(algorithm).learn(96, callback=[saver, mitigating()])
    resumed = saver.load(type(whole))
    assert resumed.num_timesteps == 48
    resumed.learn(48, callback=mitigating(), reset_num_timesteps=False)
    assert not differences(everything(whole), everything(resumed))
    # It acted before and after.
    assert weights_differ(saver.load(type(whole)), plain[algorithm])
    assert weights_differ(whole, saver.load(type(whole)).learn(48, reset_num_timesteps=False))


class Stop(BaseCallback):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def _on_step(self) -> bool:
        if self.num_timesteps >= 24:
            raise self.error
        return True


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize(("name", "arguments"), ACTING, ids=labels(ACTING))
def test_no_hook_is_left(name: str, arguments: dict[str, Any], error: BaseException) -> None:
    model = make_acting("PPO").learn(32, callback=MitigationCallback([{name: arguments}]))
    assert n_hooks(model) == 0
    with pytest.raises(type(error)):  # while data are collected
        model.learn(64, callback=[MitigationCallback([{name: arguments}]), Stop(error)])
    assert n_hooks(model) == 0

    def breaks(*_: Any) -> None:
        raise error

    model.policy.optimizer.step = breaks
    with pytest.raises(type(error)):  # in an update
        model.learn(64, callback=MitigationCallback([{name: arguments}]))
    del model.policy.optimizer.step
    model.learn(16, callback=MitigationCallback([{"l2": {"coef": 0.0}}]))
    assert n_hooks(model) == 0 and attachments_of(model) == []
