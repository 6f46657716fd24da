import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th
import yaml
from conftest import TINY_L2ER

from sb3_plasticity import PPO_L2ER
from sb3_plasticity.cli import main
from sb3_plasticity.mitigations.callback import MitigationCallback
from sb3_plasticity.zoo import config
from sb3_plasticity.zoo.experiment import Experiment
from sb3_plasticity.zoo.options import parse_value
from sb3_plasticity.zoo.train import make_spec

CONTENT = {algo: config.read_file(str(config.packaged_config(algo))) for algo in ("ppo", "ppo_l2er")}
ENV_IDS = [f"Slippery{robot}-v0" for robot in ("Ant", "HalfCheetah", "Hopper", "Walker2d", "Humanoid")]
ENV_IDS += ["NonStationaryAnt-v0"]
PRESETS = [
    (algo, name)
    for algo, content in CONTENT.items()
    for name in content
    if name not in ENV_IDS and name != "default" and not name.startswith(".")
]


def build(
    algo: str, *, preset: str | None = None, env_id: str = "SlipperyAnt-v0", **hyperparams: Any
) -> tuple[Experiment, Any]:
    options = {"algo": algo, "env": env_id, "preset": preset, "hyperparams": hyperparams, "seed": 0, "device": "cpu"}
    spec, _ = make_spec(options)
    experiment = Experiment(spec, Path("logs"))
    return experiment, experiment.make_model()


@pytest.mark.parametrize("algo", CONTENT)
def test_every_environment_has_an_entry_and_every_key_is_known(algo: str) -> None:
    assert set(ENV_IDS) <= set(CONTENT[algo])
    for name, entry in CONTENT[algo].items():
        if not name.startswith("."):
            config.check_entry(entry, name, algo, "SlipperyAnt-v0")


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_one_argument_form_takes_the_entry(env_id: str) -> None:
    model = PPO_L2ER(env_id, device="cpu")
    assert (model.n_envs, model.n_steps) == (8, 256)
    assert model.policy.log_std[0].item() == -1
    assert model.env is not None
    model.env.close()


@pytest.mark.parametrize("setting", ["paper", "dohare"])
def test_variants_differ_in_their_coefficients_alone(setting: str) -> None:
    variants = {name: dict(CONTENT["ppo_l2er"][f"{setting}-{name}"]) for name in ("l2er", "l2", "er", "plain")}
    coefficients = {
        name: (bool(variant.pop("er_coef")), bool(variant.pop("l2_coef"))) for name, variant in variants.items()
    }
    assert coefficients == {"l2er": (True, True), "l2": (False, True), "er": (True, False), "plain": (False, False)}
    assert len({yaml.safe_dump(variant) for variant in variants.values()}) == 1


@pytest.mark.parametrize("setting", ["paper", "dohare"])
def test_stock_ppo_has_the_same_settings(setting: str) -> None:
    ours, theirs = CONTENT["ppo_l2er"][f"{setting}-plain"], CONTENT["ppo"][f"{setting}-plain"]
    only_ours = {"er_coef", "l2_coef", "er_mode", "rank_of"}
    assert {key: value for key, value in ours.items() if key not in only_ours} == theirs
    # YAML's aliases are one object
    l2, plain = copy.deepcopy((CONTENT["ppo"][f"{setting}-l2"], CONTENT["ppo"][f"{setting}-plain"]))
    decay = l2["policy_kwargs"]["optimizer_kwargs"].pop("weight_decay")
    assert l2 == plain
    assert decay / 2 == CONTENT["ppo_l2er"][f"{setting}-l2"]["l2_coef"]


def test_a_published_preset_is_what_was_published() -> None:
    manager, model = build("ppo_l2er", preset="paper-l2er")
    kind: type = type(model)
    assert kind is PPO_L2ER
    assert (model.n_envs, model.n_steps, model.batch_size, model.er_mode) == (1, 2048, 16, "step")
    assert (model.er_coef(1.0), model.l2_coef(0.3), model.max_grad_norm) == (1e-6, 5e-4, math.inf)
    assert model.policy.optimizer.defaults["betas"] == (0.99, 0.99)
    assert model.action_space.high[0] == 10
    assert manager.n_timesteps == 10_000_000
    hidden = model.policy.mlp_extractor.policy_net
    assert [type(layer).__name__ for layer in hidden] == ["Linear", "ReLU"]
    # LeCun's uniform distribution, up to its bound, in every layer
    for layer in (hidden[0], model.policy.action_net, model.policy.value_net):
        bound = math.sqrt(3 / layer.in_features)
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not th.any(layer.bias)


@pytest.mark.parametrize(("algo", "preset"), PRESETS)
def test_every_preset_makes_a_model(algo: str, preset: str) -> None:
    _, model = build(algo, preset=preset)
    decays = algo == "ppo" and preset in ("paper-l2", "dohare-l2")
    assert model.policy.optimizer.defaults["weight_decay"] == (1e-3 if decays else 0)


def test_the_layer_norm_preset_normalises_every_hidden_activation() -> None:
    experiment, model = build("ppo", preset="layernorm-l2")
    for net in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net):
        hidden = net(th.randn(5, model.observation_space.shape[0]) * 7)
        assert [type(layer).__name__ for layer in net] == ["Linear", "LayerNormReLU"] * 2
        before = th.nn.functional.layer_norm(net[2](net[:2](th.zeros(5, net[0].in_features))), (64,))
        th.testing.assert_close(net(th.zeros(5, net[0].in_features)), before.relu())
        assert hidden.min() == 0
    (callback,) = [one for one in experiment.make_callbacks() if isinstance(one, MitigationCallback)]
    assert len(callback.mitigations) == 1


def test_coefficients_may_be_schedules_and_numbers_need_no_dot() -> None:
    _, model = build("ppo_l2er", er_coef="lin_1e-3", l2_coef="lin_2e-4", learning_rate="3e-4", clip_range="lin_0.2")
    assert (model.er_coef(1.0), model.er_coef(0.5), model.l2_coef(0.25)) == pytest.approx((1e-3, 5e-4, 5e-5))
    assert (model.learning_rate(1.0), model.clip_range(0.5)) == pytest.approx((3e-4, 0.1))


def test_compile_is_passed_on() -> None:
    _, model = build("ppo_l2er", compile=True)
    assert model.compile is True


def test_policy_kwargs_name_their_classes() -> None:
    _, model = build("ppo_l2er", policy_kwargs={"activation_fn": "ELU", "optimizer_class": "SGD"})
    assert type(model.policy.optimizer) is th.optim.SGD
    assert isinstance(model.policy.mlp_extractor.policy_net[1], th.nn.ELU)
    # what the entry says beside them stays
    assert model.policy.log_std[0].item() == -1


def test_evaluation_gets_the_environment_of_training() -> None:
    kwargs = {"task": 2, "reset_noise_scale": 0.05}
    manager, _ = build("ppo_l2er", env_kwargs=kwargs, eval_env_kwargs={"reset_noise_scale": 0.2}, vec_env="dummy")
    training, evaluation = manager.create_envs(1, no_log=True), manager.create_envs(1, eval_env=True)
    for envs, noise in ((training, 0.05), (evaluation, 0.2)):
        assert envs.get_attr("task")[0].index == 2
        assert envs.get_attr("_reset_noise_scale") == [noise]


def test_other_environments_and_algorithms_find_their_hyperparameters() -> None:
    assert config.default_config("ppo", "CartPole-v1", None).endswith("rl_zoo3/hyperparams/ppo.yml")
    assert config.default_config("sac", "SlipperyAnt-v0", None).endswith("rl_zoo3/hyperparams/sac.yml")
    assert Path(config.default_config("ppo_l2er", "Blackjack-v1", None)) == config.packaged_config("ppo_l2er")
    manager, _ = build("ppo_l2er", env_id="CartPole-v1", n_steps=64)
    assert manager.vec_env == "dummy"
    gym.make("CartPole-v1").close()


def test_ppo_l2er_is_compared_with_rl_zoos_tuned_ppo() -> None:
    """Where there is no entry of ours, both algorithms have the same hyper-parameters; L2-ER has its own defaults."""
    _, ours = build("ppo_l2er", env_id="CartPole-v1")
    _, theirs = build("ppo", env_id="CartPole-v1")
    assert (theirs.n_envs, theirs.n_steps, theirs.batch_size, theirs.n_epochs) == (8, 32, 256, 20)
    for name in ("n_envs", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.learning_rate(0.5), ours.clip_range(0.5)) == (theirs.learning_rate(0.5), theirs.clip_range(0.5))
    assert (ours.er_coef(1.0), ours.l2_coef(1.0)) == (1e-3, 5e-4)


def test_no_clipping_of_the_value_may_be_written_down() -> None:
    _, model = build("ppo", clip_range_vf=None)
    assert model.clip_range_vf is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("lin_1e-3", "lin_1e-3"),
        ("true", True),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("'text'", "text"),
        ("{'kind': 'cyclic'}", {"kind": "cyclic"}),
        ("dict(net_arch=[64], activation_fn=nn.ReLU)", {"net_arch": [64], "activation_fn": th.nn.ReLU}),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
    ],
)
def test_values_on_the_command_line(text: str, value: Any) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(("algo", "env_id"), [("ppo", "CartPole-v1"), ("sac", "Pendulum-v1"), ("dqn", "CartPole-v1")])
def test_any_algorithm_takes_mitigations(algo: str, env_id: str) -> None:
    experiment, model = build(algo, env_id=env_id, mitigations=[{"l2": {"coef": 1e-3}}])
    (callback,) = [one for one in experiment.make_callbacks() if isinstance(one, MitigationCallback)]
    assert [type(part).__name__ for part in callback.mitigations] == ["L2"] and model.num_timesteps == 0


WRONG_FILES = {
    "SlipperyAnt-v0: {policy: MlpPolicy, mitigations: [{l2: {coeff: 1}}]}": "wrong.yml: SlipperyAnt-v0: .*coef",
    "SlipperyAnt-v0: {policy: MlpPolicy, mitigations: [l2r]}": "wrong.yml: SlipperyAnt-v0: .*'l2r'",
    "SlipperyAnt-v0: {n_timesteps: 10, polcy: MlpPolicy}": "wrong.yml: SlipperyAnt-v0: unknown key 'polcy'.*'policy'",
    "SlipperyAnt-v0: {policy: MlpPolicy, policy_kwargs: {net_arhc: [4]}}": "policy_kwargs: unknown key.*'net_arch'",
    "SlipperyAnt-v0: {policy: MlpPolicy, env_kwargs: {parametre: mass}}": "env_kwargs: unknown key.*'parameter'",
    "SlipperyAnt-v0: {policy: MlpPolicy, env_kwargs: {schedule: log_unifrom}}": "wrong.yml.*'log_uniform'",
    "SlipperyAnt-v0: {policy: MlpPolicy, policy_kwargs: {activation_fn: RelU}}": "activation_fn.*'RelU'.*'ReLU'",
    "SlipperyAnt-v0: {policy: MlpPolicy, er_coef: lin_x}": "er_coef.*'lin_x'",
    "SlipperyAnt-v0: {policy: MlpPolicy, vec_env: bacth}": "`vec_env` must be one of .*'bacth'",
    "SliperyAnt-v0: {policy: MlpPolicy}": "no entry for 'SlipperyAnt-v0' .*'SliperyAnt-v0'",
    "SlipperyAnt-v0: [1": "not YAML",
    "- 1": "must be a mapping",
    "SlipperyAnt-v0: {policy: MlpPolicy, n_epochs: ten}": "wrong.yml: SlipperyAnt-v0: `n_epochs` must be a whole",
    "SlipperyAnt-v0: {policy: MlpPolicy, gamma: .nan}": "`gamma` must be a number, got nan",
    "SlipperyAnt-v0: {policy: MlpPolicy, max_grad_norm: {a: 1}}": "`max_grad_norm` must be a number",
    "SlipperyAnt-v0: {policy: MlpPolicy, n_envs: 0}": "`n_envs` must be a whole number >= 1",
    "SlipperyAnt-v0: {policy: MlpPolicy, normalize: x}": "wrong.yml: SlipperyAnt-v0: NameError",
    "SlipperyAnt-v0: {policy: MlpPolicy, policy_kwargs: 'dict('}": "wrong.yml: SlipperyAnt-v0: SyntaxError",
    "SlipperyAnt-v0: {policy: MlpPolicy, normalize: {clip_obs: x}}": "wrong.yml: SlipperyAnt-v0: ",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_wrong_file_is_named_with_its_key(text: str, train: Callable[..., Any]) -> None:
    Path("wrong.yml").write_text(text)
    status, error = train("--algo", "ppo_l2er", "--env", "SlipperyAnt-v0", "--conf-file", "wrong.yml", "-n", "10")
    assert status == 2
    assert error.count("\n") == 1
    assert re.search(WRONG_FILES[text], error), error
    assert not list(Path().glob("logs/*/*")), "a refused run leaves a folder"


WRONG_OPTIONS = {
    "--algo ppo_l2re": "'ppo_l2er'",
    "--env SliperyAnt-v0": "no environment of this id .*'SlipperyAnt-v0'",
    "--tensorbord-log x": "'--tensorboard-log'",
    "--preset paper-l2re": "no preset 'paper-l2re' .*'paper-l2er'",
    "--algo ppo --preset paper-l2er": "no preset",
    "--algo sac --preset paper-l2er": "there are presets for ppo, ppo_l2er, not sac",
    "--conf-file missing.yml": "missing.yml: there is no such file",
    "-params er_ceof:1": "-params: unknown key 'er_ceof' .*'er_coef'",
    "-params er_coef:-1": "-params er_coef: `er_coef` must be .* got -1",
    "-params er_coef": "must be key:value",
    "-params learning_rate:abc": "-params: `learning_rate` must be a number",
    "-params l2_coef:nn.ReLU": "-params: `l2_coef` must be a number",
    "-params er_coef:nn.foo": "-params: `er_coef` must be a number",
    "--device gpu": "device",
    "--device lin_1": "device",
    "--env CartPole-v1 --eval-tasks 0 1": "--eval-tasks: CartPole-v1 has no tasks",
    "-n 0": "must be a whole number >= 1",
    "--eval-episodes none": "--eval-episodes: must be a whole number",
    "--env-kwargs tsk:1": "--env-kwargs: unknown key 'tsk' .*'task'",
    "--trial-id 0": "needs --storage and --study-name",
    "--trial-id 0 --study-name s --storage none.log": "none.log: there is no such file",
    "--trial-id 0 --study-name s --storage sqlite:///none/x.db": "--storage sqlite:///none/x.db",
    "-optimize --n-trials 1 --study-name s --storage sqlite:///none/x.db": "--storage sqlite:///none/x.db",
    "--trained-agent none.zip": "none.zip: there is no such zip file",
    "--env CartPole-v1 --vec-env batch": "--vec-env batch: CartPoleEnv cannot be stepped in a batch",
    "--eval-tasks -1": "--eval-tasks: must be a whole number >= 0",
    "--log-interval 0": "--log-interval: must be",
}


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_a_wrong_option_is_refused_in_one_line(options: str, train: Callable[..., Any]) -> None:
    given = options.split()
    for name, value in (("--algo", "ppo_l2er"), ("--env", "SlipperyAnt-v0"), ("-n", "10")):
        given += [] if name in given else [name, value]
    status, error = train(*given)
    assert status == 2
    assert error.count("\n") == 1
    assert re.search(WRONG_OPTIONS[options], error), error


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="er_ceof"):
        main(["train", "--debug", "--algo", "ppo_l2er", *TINY_L2ER, "er_ceof:1"])
