"""Plasticity injection: the output stays, the fresh head learns on, and a saved agent is what it was."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import ALGORITHMS, IMAGE, make_agent
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_plasticity.common.injection import Place, add_terms, terms_of
from sb3_plasticity.mitigations import LayerReset, MitigationCallback, PlasticityInjection, attached, mitigate

SERVED = [name for name in ALGORITHMS if name != "CrossQ"]


def outputs(model: Any) -> list[th.Tensor]:
    """What an agent's networks put out on a few observations."""
    policy, observations = model.policy, model.observation_space.sample
    model.observation_space.seed(0)
    observations, _ = policy.obs_to_tensor(np.stack([observations() for _ in range(5)]))
    policy.set_training_mode(False)
    with th.no_grad():
        if hasattr(policy, "critic"):
            actor, actions = policy.actor, th.linspace(-1, 1, 10).reshape(5, 2)
            stochastic = hasattr(actor, "get_action_dist_params")
            acting = actor.get_action_dist_params(observations)[:2] if stochastic else [actor(observations)]
            return [*acting, *policy.critic(observations, actions)]
        if hasattr(policy, "value_net"):
            distribution = policy.get_distribution(observations).distribution
            choice = getattr(distribution, "logits", None)
            return [distribution.mean if choice is None else choice, policy.predict_values(observations)]
        return [(policy.q_net if hasattr(policy, "q_net") else policy.quantile_net)(observations)]


def inject(model: Any, part: PlasticityInjection) -> None:
    with attached(model, [part]) as attachment:
        attachment.call("task_change")


def test_by_hand() -> None:
    """relu(2x) * 3 is frozen; relu(x) * 1, which is trained to relu(x) * 4, and relu(x) * 1 are the fresh ones."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu, self.second = nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)

        def forward(self, inputs: th.Tensor) -> th.Tensor:
            found: th.Tensor = self.second(self.relu(self.first(inputs)))
            return found

    head = Head().double()

    def weights(first: float, second: float) -> dict[str, th.Tensor]:
        return {"first.weight": th.tensor([[first]]).double(), "second.weight": th.tensor([[second]]).double()}

    add_terms(head, [Place(("first", "relu", "second"))])
    (terms,) = terms_of(head)
    terms.append(weights(1.0, 1.0), weights(2.0, 3.0))
    head.load_state_dict(weights(1.0, 4.0), strict=False)
    inputs = th.tensor([[0.5], [-1.0]], dtype=th.float64, requires_grad=True)
    found = head(inputs)
    assert found.flatten().tolist() == [3.0 + 2.0 - 0.5, 0.0]
    (gradient,) = th.autograd.grad(found.sum(), inputs)
    assert gradient.flatten().tolist() == [6.0 + 4.0 - 1.0, 0.0]  # through all three
    assert [name for name, _ in head.named_parameters()] == ["first.weight", "second.weight"]


@pytest.mark.parametrize("name", [name for name in SERVED if name != "RecurrentPPO"])
@pytest.mark.filterwarnings("ignore:.*alone. TRPO")
def test_outputs_stay_and_the_fresh_head_learns(name: str) -> None:
    model = make_agent(name).learn(32)
    before, parameters = outputs(model), {key: p.detach().clone() for key, p in model.policy.named_parameters()}
    inject(model, PlasticityInjection())
    assert all(th.equal(one, other) for one, other in zip(before, outputs(model), strict=True))
    changed = {key for key, p in model.policy.named_parameters() if not th.equal(p, parameters[key])}
    online = {key for key in changed if "target" not in key}
    hidden = {key for key in online if key.endswith("weight")}
    assert hidden and not any("log_std" in key for key in changed)
    optimizers = [part.optimizer for part in model.policy.modules() if getattr(part, "optimizer", None) is not None]
    for key in online:
        assert all(not optimizer.state.get(model.policy.get_parameter(key)) for optimizer in optimizers)
    for one in ("actor", "critic", "q_net", "quantile_net"):
        pair: list[Any] = [getattr(model.policy, one, None), getattr(model.policy, f"{one}_target", None)]
        if None not in pair:
            left, right = (part.state_dict() for part in pair)
            assert all(th.equal(value, right[key]) for key, value in left.items())
    frozen = copy.deepcopy(model.policy.injections.state_dict())
    learned = {key: model.policy.get_parameter(key).detach().clone() for key in hidden}
    model.learn(32, reset_num_timesteps=False)
    assert all(th.equal(value, frozen[key]) for key, value in model.policy.injections.state_dict().items())
    moved = [key for key in hidden if not th.equal(model.policy.get_parameter(key), learned[key])]
    assert moved == list(hidden)
    assert not all(th.equal(one, other) for one, other in zip(before, outputs(model), strict=True))


def test_targets_have_the_terms_too() -> None:
    model = make_agent("DQN").learn(32)
    inject(model, PlasticityInjection())
    observations = th.randn(5, 3)
    assert th.equal(model.q_net(observations), model.q_net_target(observations))


def test_a_shared_extractor() -> None:
    """The head of both networks begins in the convolutions' linear layer, which both read."""
    kwargs = dict(features_extractor_kwargs=dict(features_dim=8), net_arch=[])
    model = make_agent("PPO", IMAGE, policy_kwargs=kwargs).learn(16)
    before = outputs(model)
    inject(model, PlasticityInjection(layers=2))
    assert all(th.equal(one, other) for one, other in zip(before, outputs(model), strict=True))
    with pytest.raises(ValueError, match="which value_net reads too, stays as it is, got 2"):
        inject(model, PlasticityInjection(layers=2, networks=["policy"]))


@pytest.mark.parametrize("name", ["PPO", "SAC", "DQN"])
def test_a_saved_agent_is_what_it_was(name: str, tmp_path: Path) -> None:
    model = make_agent(name)
    model.learn(64, callback=MitigationCallback(PlasticityInjection(when=16, times=2)))
    assert {terms.place.count for terms in terms_of(model.policy)} == {2}
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert all(th.equal(one, other) for one, other in zip(outputs(model), outputs(loaded), strict=True))
    assert isinstance(loaded.policy, type(model.policy))
    loaded.save(tmp_path / "again")  # and once more
    again = type(model).load(tmp_path / "again")
    assert all(th.equal(one, other) for one, other in zip(outputs(model), outputs(again), strict=True))


def test_another_process_loads_it_without_the_callback(tmp_path: Path) -> None:
    model = make_agent("PPO").learn(32, callback=MitigationCallback(PlasticityInjection(when=16)))
    model.save(tmp_path / "model")
    observation = np.array([0.3, -1.0, 2.0], np.float32)
    code = (
        "import sys, numpy as np; from stable_baselines3 import PPO; model = PPO.load(sys.argv[1], device='cpu');"
        "print(model.predict(np.array([0.3, -1.0, 2.0], np.float32), deterministic=True)[0].tobytes().hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    assert found == model.predict(observation, deterministic=True)[0].tobytes().hex()


def test_a_policy_without_the_terms_refuses_the_weights(tmp_path: Path) -> None:
    model = make_agent("PPO").learn(32, callback=MitigationCallback(PlasticityInjection(when=16)))
    model.policy.save(tmp_path / "policy")
    with pytest.raises(RuntimeError, match="injections"):
        ActorCriticPolicy.load(str(tmp_path / "policy"))
    with pytest.raises(RuntimeError, match="injections"):
        make_agent("PPO").set_parameters(model.get_parameters())


def test_a_copied_policy_has_terms_of_its_own() -> None:
    model = make_agent("PPO")
    inject(model, PlasticityInjection())
    twin, observations = copy.deepcopy(model.policy), th.randn(4, 3)
    before = model.policy.predict_values(observations)
    assert th.equal(twin.predict_values(observations), before)
    with th.no_grad():
        for terms in terms_of(twin):
            for buffer in terms.buffers():
                buffer.zero_()
    assert th.equal(model.policy.predict_values(observations), before)
    assert not th.equal(twin.predict_values(observations), before)


def test_once_unless_told_otherwise() -> None:
    part = PlasticityInjection(when=16)
    model = make_agent("PPO").learn(96, callback=MitigationCallback([part, LayerReset(1, when=48)]))
    assert part.logs()["resets"] == 1 and {terms.place.count for terms in terms_of(model.policy)} == {1}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PlasticityInjection(layers=0), "`layers` must be a whole number >= 1, got 0"),
        (lambda: PlasticityInjection(times=0), "`times` must be a whole number >= 1, got 0"),
        (lambda: inject(make_agent("PPO"), PlasticityInjection(4)), "`layers` must be at most 3 for action_net of PPO"),
        (
            lambda: inject(make_agent("PPO", use_sde=True), PlasticityInjection()),
            "`use_sde` must be False for plasticity_injection",
        ),
        (
            lambda: inject(make_agent("CrossQ"), PlasticityInjection()),
            "so few for plasticity_injection that no BatchRenorm1d is in the head of CrossQ",
        ),
    ],
)
def test_bad_input(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_plain_torch_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with (
        pytest.raises(ValueError, match="without plasticity_injection in plain torch"),
        mitigate(net, th.optim.Adam(net.parameters()), [PlasticityInjection()]),
    ):
        net(th.ones(4, 2))


def test_recurrent_policies() -> None:
    model = make_agent("RecurrentPPO").learn(32, callback=MitigationCallback(PlasticityInjection(when=16)))
    assert [terms.place.chain[-1] for terms in terms_of(model.policy)] == ["action_net", "value_net"]
