"""The seam: hooks act where they should, leave no trace, and their state survives."""

import gc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch as th
from acting import n_hooks
from algorithms import ALGORITHMS, make_agent
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.mitigations import L2, Mitigation, MitigationCallback, attached, attachments_of, mitigate


class Everything(Mitigation):
    """Uses every hook, and does nothing at strength 0."""

    def __init__(self, coef: float = 0.0, networks: Iterable[str] | None = None, interval: int = 1) -> None:
        super().__init__(coef, networks=networks, interval=interval)
        self.calls: list[tuple[Any, ...]] = []

    def gradient(self, name: str, parameter: th.Tensor, strength: Any, *constants: th.Tensor) -> th.Tensor:
        self.calls.append(("gradient", name))
        result: th.Tensor = strength * parameter
        return result

    def feature_penalty(self, network: Network, features: Mapping[str, th.Tensor]) -> th.Tensor:
        self.calls.append(("features", network.name, tuple(features)))
        return th.stack([value.square().sum() for value in features.values()]).sum()

    def records(self, network: Network) -> tuple[str, ...]:
        return network.features

    def before_update(self, networks: tuple[Network, ...]) -> None:
        self.calls.append(("before", *(network.name for network in networks)))

    def after_update(self, networks: tuple[Network, ...]) -> None:
        self.calls.append(("after", *(network.name for network in networks)))

    def rollout_start(self) -> None:
        self.calls.append(("start",))

    def rollout_end(self) -> None:
        self.calls.append(("end",))


def parameters(model: PPO) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    return all(th.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.filterwarnings("ignore:.*alone. TRPO")
def test_strength_0_leaves_every_algorithm_as_it_is_bit_for_bit(name: str) -> None:
    plain = make_agent(name).learn(64)
    mitigated = make_agent(name)
    part = Everything(0.0)
    mitigated.learn(64, callback=MitigationCallback([part, L2(0.0)]))
    assert same(parameters(plain), parameters(mitigated))
    kinds = {call[0] for call in part.calls}
    assert kinds == {"before", "after", "start", "end"}
    stepped = {network for call in part.calls if call[0] == "after" for network in call[1:]}
    assert stepped == set(part.targets)
    assert n_hooks(mitigated) == 0


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.filterwarnings("ignore:.*alone. TRPO")
def test_every_algorithm_feels_every_hook(name: str) -> None:
    plain = make_agent(name).learn(48)
    part = Everything(1e-2)
    model = make_agent(name).learn(48, callback=MitigationCallback(part))
    seen = {call[1:] for call in part.calls if call[0] == "features"}
    assert seen == {(network.name, network.features) for network in part.targets.values()}
    assert {call[1] for call in part.calls if call[0] == "gradient"} == set(part.parameters)
    assert set(part.agent.activations) == {layer for network in part.targets.values() for layer in network.features}
    assert not same(parameters(model), parameters(plain))


def test_features_act_on_a_networks_own_training_passes_alone() -> None:
    """SAC's actor loss goes back through the critics: no penalty on their features may push the actor."""

    def learn(**kwargs: Any) -> SAC:
        agent = make_agent("SAC", gradient_steps=1)
        agent.policy.critic.optimizer.param_groups[0]["lr"] = 0.0
        agent._update_learning_rate = lambda optimizers: None
        result: SAC = agent.learn(12, **kwargs)
        return result

    part = Everything(10.0, networks=["critic_0", "critic_1"])
    part.gradient = lambda _name, parameter, *_: th.zeros_like(parameter)  # type: ignore[method-assign]
    plain, model = learn(), learn(callback=MitigationCallback(part))
    assert all(th.equal(p, q) for p, q in zip(model.actor.parameters(), plain.actor.parameters(), strict=True))
    n_updates = sum(call[0] == "after" for call in part.calls)
    assert n_updates > 2 and sum(call[0] == "features" for call in part.calls) == 2 * n_updates


class Stop(BaseCallback):
    def __init__(self, error: BaseException, at: int) -> None:
        super().__init__()
        self.error, self.at = error, at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise self.error
        return True


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_no_hook_is_left_when_collecting_data_raises(name: str, error: BaseException) -> None:
    model = make_agent(name)
    with pytest.raises(type(error)):
        model.learn(64, callback=[MitigationCallback([Everything(1.0)]), Stop(error, 24)])
    assert n_hooks(model) == 0


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_no_hook_is_left_when_a_mitigation_raises(error: BaseException) -> None:
    class Raises(Everything):
        def after_update(self, networks: tuple[Network, ...]) -> None:
            raise error

    model = make_agent("PPO")
    with pytest.raises(type(error)):
        model.learn(64, callback=MitigationCallback([Raises(1.0)]))
    assert n_hooks(model) == 0


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_hooks_of_an_update_that_broke_off_do_nothing_and_go(error: BaseException) -> None:
    model = make_agent("PPO")
    part = Everything(1.0)
    updates: list[None] = []
    step = model.policy.optimizer.step

    def breaks(*args: Any, **kwargs: Any) -> Any:
        updates.append(None)
        if len(updates) == 2:
            raise error
        return step(*args, **kwargs)

    model.policy.optimizer.step = breaks
    callback = MitigationCallback([part])
    with pytest.raises(type(error)):
        model.learn(64, callback=callback)
    del model.policy.optimizer.step
    n_calls = len(part.calls)
    model.learn(32)  # without the callback: the stale hooks are silent
    assert len(part.calls) == n_calls
    assert attachments_of(model) == []
    model.learn(32, callback=MitigationCallback([Everything()]))
    assert n_hooks(model) == 0


def test_hooks_go_with_the_callback_that_made_them() -> None:
    model = make_agent("PPO")

    def learn_and_break() -> None:
        def breaks(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        model.policy.optimizer.step = breaks
        try:
            model.learn(64, callback=MitigationCallback([Everything(1.0)]))
        except KeyboardInterrupt:
            pass

    learn_and_break()
    del model.mitigation_state  # which holds the callback
    gc.collect()
    assert n_hooks(model) == 0


def test_a_context_removes_hooks_however_it_ends() -> None:
    model = make_agent("PPO")
    with pytest.raises(KeyboardInterrupt), attached(model, [Everything(1.0)]) as attachment:
        assert attachments_of(model) == [attachment] and n_hooks(model) > 0
        raise KeyboardInterrupt
    assert n_hooks(model) == 0 and attachments_of(model) == []


@pytest.mark.parametrize("name", ["PPO", "SAC", "DQN"])
def test_a_resumed_run_goes_on_as_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    class Remembers(Mitigation):
        """A penalty that depends on all that has been."""

        def __init__(self) -> None:
            super().__init__(0.1, interval=3)

        def setup(self) -> None:
            self.state.setdefault("mean", {name: p.detach().clone() for name, p in self.parameters.items()})

        def constants(self, name: str) -> tuple[th.Tensor, ...]:
            return (self.state["mean"][name],)

        def gradient(self, name: str, parameter: th.Tensor, strength: Any, *constants: th.Tensor) -> th.Tensor:
            result: th.Tensor = strength * (parameter - constants[0])
            return result

        def feature_penalty(self, network: Network, features: Mapping[str, th.Tensor]) -> th.Tensor:
            return th.stack([value.square().mean() for value in features.values()]).sum()

        def after_update(self, networks: tuple[Network, ...]) -> None:
            for key, value in self.state["mean"].items():
                noise = th.randn(value.shape, generator=self.generator)
                value.lerp_(self.parameters[key].detach() + noise, 0.1)

    models = []
    for resumed in (False, True):
        model = make_agent(name)
        callback = MitigationCallback([Remembers(), Remembers()])
        model.learn(32, callback=callback)
        if resumed:
            model.save(tmp_path / "model.zip")
            if name != "PPO":
                model.save_replay_buffer(tmp_path / "buffer")
            algorithm: Any = ALGORITHMS[name][0]
            model = algorithm.load(tmp_path / "model.zip", env=model.get_env())
            if name != "PPO":
                model.load_replay_buffer(tmp_path / "buffer")
            callback = MitigationCallback([Remembers(), Remembers()])
        model._last_obs = None
        model.set_random_seed(1)
        model.learn(32, callback=callback, reset_num_timesteps=False)
        models.append(model)
    assert same(*map(parameters, models))
    states = [model.mitigation_state.state_dict()["mitigations"]["remembers_2"] for model in models]
    assert states[0]["updates"] == states[1]["updates"]
    assert all(th.equal(value, states[1]["mean"][key]) for key, value in states[0]["mean"].items())


def test_mitigations_log_under_their_names() -> None:
    from stable_baselines3.common.logger import Logger

    records = {}

    class Records(Logger):
        def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
            records[key] = value

    model = make_agent("PPO")
    model.set_logger(Records(None, []))
    model.learn(16, callback=MitigationCallback([L2(0.5), L2(0.25)]))
    assert records["mitigation/l2/strength"] == 0.5 and records["mitigation/l2_2/strength"] == 0.25


def test_plain_torch() -> None:
    """One step of gradient descent with L2, by hand."""
    net = th.nn.Sequential(th.nn.Linear(2, 2), th.nn.ReLU(), th.nn.Linear(2, 1)).double()
    optimizer = th.optim.SGD(net.parameters(), lr=0.1)
    inputs = th.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=th.float64)
    net(inputs).square().sum().backward()
    expected = [p.detach() - 0.1 * (p.grad + 2 * 0.3 * p.detach()) for p in net.parameters() if p.grad is not None]
    optimizer.zero_grad()
    part = Everything()
    with mitigate(net, optimizer, [L2(0.3), part]) as task_change:
        net(inputs).square().sum().backward()
        optimizer.step()
        task_change()
    for parameter, value in zip(net.parameters(), expected, strict=True):
        assert th.allclose(parameter, value, rtol=1e-12)
    assert part.targets["network"].features == ("2",)
    assert [call[0] for call in part.calls] == ["before", "after", "start"]
    net(inputs).sum().backward()
    optimizer.step()
    assert len(part.calls) == 3
