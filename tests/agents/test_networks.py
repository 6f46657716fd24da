"""The networks of every algorithm: whose parameters and layers are whose, worked out by hand."""

import copy

import numpy as np
import pytest
import torch as th
from algorithms import ALGORITHMS, IMAGE, VECTOR, make_agent
from gymnasium import spaces

from sb3_plasticity.agents import networks_of

ON_POLICY = ("PPO", "PPO_L2ER", "A2C", "TRPO", "MaskablePPO")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_names_its_networks(name: str) -> None:
    model = make_agent(name)
    networks = networks_of(model)
    n_critics = {"SAC": 2, "TD3": 2, "DDPG": 1, "TQC": 2, "CrossQ": 2}.get(name)
    if n_critics:
        expected = ["actor", *(f"critic_{index}" for index in range(n_critics))]
    else:
        expected = ["q"] if name in ("DQN", "QRDQN") else ["policy", "value"]
    assert list(networks) == expected
    for network in networks.values():
        assert network.root is model.policy
        if name == "TRPO" and network.name == "policy":
            assert network.optimizer is None
        else:
            assert network.optimizer is not None
            held = {id(p) for group in network.optimizer.param_groups for p in group["params"]}
            assert all(id(p) in held for p in network.parameters.values())
        assert all(network.root.get_parameter(n) is p for n, p in network.parameters.items())
        assert not any("target" in n for n in (*network.parameters, *network.layers))
    # Together they are all that is trained.
    named = {n for network in networks.values() for n in network.parameters}
    trained = {n for n, p in model.policy.named_parameters() if p.requires_grad and "target" not in n}
    assert named == trained


@pytest.mark.parametrize("name", ON_POLICY)
def test_actor_critics_have_a_policy_and_a_value_network(name: str) -> None:
    networks = networks_of(make_agent(name))
    assert networks["policy"].layers == (
        "mlp_extractor.policy_net.0",
        "mlp_extractor.policy_net.2",
        "action_net",
    )
    assert networks["value"].layers == ("mlp_extractor.value_net.0", "mlp_extractor.value_net.2", "value_net")
    assert networks["policy"].exploration == (frozenset() if name == "MaskablePPO" else {"log_std"})
    assert not networks["value"].exploration


def test_the_layers_of_actors_critics_and_q_networks() -> None:
    sac = networks_of(make_agent("SAC"))
    assert sac["actor"].layers == ("actor.latent_pi.0", "actor.latent_pi.2", "actor.mu", "actor.log_std")
    assert sac["actor"].exploration == {"actor.log_std.weight", "actor.log_std.bias"}
    assert sac["critic_1"].layers == ("critic.qf1.0", "critic.qf1.2", "critic.qf1.4")
    td3 = networks_of(make_agent("TD3"))
    assert td3["actor"].layers == ("actor.mu.0", "actor.mu.2", "actor.mu.4")
    assert td3["critic_0"].layers == ("critic.qf0.0", "critic.qf0.2", "critic.qf0.4")
    assert networks_of(make_agent("DQN"))["q"].layers == ("q_net.q_net.0", "q_net.q_net.2", "q_net.q_net.4")


def test_a_shared_extractor_is_in_both_networks_of_an_actor_critic_and_in_the_actor_alone_off_policy() -> None:
    shared = {"features_extractor.cnn.0.weight", "features_extractor.linear.0.bias"}
    kwargs = dict(features_extractor_kwargs=dict(features_dim=8))
    ppo = networks_of(make_agent("PPO", IMAGE, policy_kwargs=kwargs))
    assert all(shared < set(network.parameters) for network in ppo.values())
    assert ppo["value"].layers[:2] == ("features_extractor.cnn.0", "features_extractor.cnn.2")
    apart = networks_of(make_agent("PPO", IMAGE, policy_kwargs=dict(kwargs, share_features_extractor=False)))
    assert not set(apart["policy"].parameters) & set(apart["value"].parameters)
    sac = networks_of(make_agent("SAC", IMAGE, policy_kwargs=dict(kwargs, share_features_extractor=True)))
    assert "actor.features_extractor.cnn.0" in sac["actor"].layers
    assert sac["critic_0"].layers == ("critic.qf0.0", "critic.qf0.2", "critic.qf0.4")


def test_a_recurrent_network_counts_its_lstm() -> None:
    networks = networks_of(make_agent("RecurrentPPO"))
    assert networks["policy"].layers[0] == "lstm_actor"
    assert networks["value"].layers[0] == "lstm_critic"
    shared = networks_of(make_agent("RecurrentPPO", policy_kwargs=dict(shared_lstm=True, enable_critic_lstm=False)))
    assert "lstm_actor" not in shared["value"].layers  # the value loss does not reach it


def test_dict_observations_and_state_dependent_exploration() -> None:
    space = spaces.Dict(vector=VECTOR, number=spaces.Box(-1, 1, (1,)))
    for name in ("PPO", "SAC", "DQN", "RecurrentPPO"):
        assert len(networks_of(make_agent(name, space))) >= 1
    assert networks_of(make_agent("PPO", use_sde=True))["policy"].exploration == {"log_std"}
    assert networks_of(make_agent("SAC", use_sde=True))["actor"].exploration == {"actor.log_std"}


@pytest.mark.parametrize("shared", [True, False])
def test_hidden_activations_count_once(shared: bool) -> None:
    kwargs = dict(share_features_extractor=shared, features_extractor_kwargs=dict(features_dim=8))
    convolutions = ("features_extractor.cnn.2", "features_extractor.cnn.4", "features_extractor.linear.0")
    for arch, places in (([8, 8], (0, 2)), ([], ())):
        networks = networks_of(make_agent("PPO", IMAGE, policy_kwargs=dict(kwargs, net_arch=arch)))
        heads = {
            network: (*(f"mlp_extractor.{network}_net.{place}" for place in places), head)
            for network, head in (("policy", "action_net"), ("value", "value_net"))
        }
        assert networks["policy"].features == (*convolutions, *heads["policy"])
        # Shared: the value's first layer reads the very features that the policy's first layer reads.
        own = heads["value"][1:] if shared else (*(f"vf_{name}" for name in convolutions), *heads["value"])
        assert networks["value"].features == own
    sac = networks_of(make_agent("SAC"))
    assert sac["actor"].features == ("actor.latent_pi.2", "actor.mu")  # log_std reads what mu reads
    assert sac["critic_0"].features == ("critic.qf0.2", "critic.qf0.4")
    apart = networks_of(make_agent("SAC", IMAGE, policy_kwargs=kwargs))
    assert ("critic.qf0.0" in apart["critic_0"].features) == (not shared)
    assert "critic.qf1.0" not in apart["critic_1"].features


def test_frozen_parameters_belong_to_nobody() -> None:
    model = make_agent("PPO")
    model.policy.mlp_extractor.policy_net[0].weight.requires_grad_(False)
    assert "mlp_extractor.policy_net.0.weight" not in networks_of(model)["policy"].parameters


@pytest.mark.parametrize("name", ["PPO", "SAC", "CrossQ"])
def test_naming_networks_leaves_no_trace(name: str) -> None:
    model = make_agent(name)
    model.learn(40)
    before = copy.deepcopy(model.policy.state_dict())
    modes = [module.training for module in model.policy.modules()]
    generators = th.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    networks_of(model)
    assert th.equal(generators[0], th.get_rng_state())
    assert np.array_equal(generators[1], np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002
    assert [module.training for module in model.policy.modules()] == modes
    assert all(th.equal(value, model.policy.state_dict()[key]) for key, value in before.items())
    assert not any(module._forward_pre_hooks for module in model.policy.modules())


def test_a_stranger_registers_an_algorithm() -> None:
    class Mine:
        pass

    with pytest.raises(TypeError, match=r"register it with @networks_of\.register"):
        networks_of(Mine())
    networks_of.register(Mine, lambda model: {})
    assert networks_of(Mine()) == {}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_hidden_layers_and_outputs_of_every_algorithm(name: str) -> None:
    for network in networks_of(make_agent(name)).values():
        assert not network.unclear
        hidden = [layer for layer in network.layers if "lstm" not in layer and layer not in network.outputs]
        assert list(network.units) == hidden and len(hidden) == 2
        assert set(network.outputs) == {"actor.mu", "actor.log_std"} & set(network.layers) or len(network.outputs) == 1
        for units in network.units.values():
            assert units.n_units == 8
            assert {name for consumer in units.consumers for name in [consumer.layer]} <= set(network.layers)


def test_a_shared_extractor_is_read_by_actor_and_critics() -> None:
    kwargs = dict(features_extractor_kwargs=dict(features_dim=8), share_features_extractor=True)
    for name, readers in (("SAC", {"actor.latent_pi.0"}), ("TD3", {"actor.mu.0"})):
        units = networks_of(make_agent(name, IMAGE, policy_kwargs=kwargs))["actor"].units
        extractor = units["actor.features_extractor.linear.0"]
        assert {consumer.layer for consumer in extractor.consumers} == readers | {"critic.qf0.0", "critic.qf1.0"}


def test_state_dependent_exploration_keeps_units_clear() -> None:
    for name in ("PPO", "SAC"):
        assert all(not network.unclear for network in networks_of(make_agent(name, use_sde=True)).values())
