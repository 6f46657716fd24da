"""A keyword that is misspelt is answered with the one that was meant, wherever users write keywords."""

import inspect
from typing import Any

import gymnasium as gym
import pytest

import sb3_plasticity as sp
from sb3_plasticity import mitigations


@pytest.mark.parametrize(
    ("call", "typo", "meant"),
    [
        (sp.CurvatureCallback, "kind", "kinds"),
        (sp.PlasticityCallback, "evry", "every"),
        (sp.TaskSyncCallback, "on_task_chang", "on_task_change"),
        (sp.MitigationCallback, "mitigation", "mitigations"),
        (mitigations.L2Init, "coeff", "coef"),
        (mitigations.ContinualBackprop, "replacement", "replacement_rate"),
        (sp.make_nonstationary_vec_env, "n_env", "n_envs"),
        (sp.NonStationary, "paramter", "parameter"),
        (sp.TaskSequence, "task_s", "tasks"),
    ],
)
def test_the_nearest_keyword_is_named(call: Any, typo: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"{call.__name__} got an unexpected keyword argument '{typo}' .*'{meant}'"):
        call(**{typo: 3})


def test_keywords_that_are_handed_on_are_known() -> None:
    assert gym.make("ContinualCartPole-v0", sutton_barto_reward=True, switch="immediate").spec is not None
    with pytest.raises(TypeError, match=r"ContinualCartPole-v0 got .* 'swich' \(did you mean 'switch'\?\)"):
        gym.make("ContinualCartPole-v0", swich="immediate")


def test_a_strangers_mitigation_is_served_too() -> None:
    class Anchor(sp.Mitigation):
        def __init__(self, tau: float = 0.1) -> None:
            super().__init__(None)

    assert list(inspect.signature(Anchor).parameters) == ["tau"]
    with pytest.raises(TypeError, match=r"Anchor got an unexpected keyword argument 'ta' \(did you mean 'tau'\?\)"):
        Anchor(ta=0.2)  # type: ignore[call-arg]
