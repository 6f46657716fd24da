"""Optimizers against NumPy implementations of the published formulas."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch as th
from stable_baselines3 import PPO
from torch import nn

from sb3_plasticity.mitigations.optimizers import TRAC, UPGD, MuonAdam, erfi

RNG = np.random.default_rng(0)
START = [RNG.normal(size=(3, 2)), RNG.normal(size=3)]
GRADIENTS = [[RNG.normal(size=(3, 2)), RNG.normal(size=3)] for _ in range(6)]


def run(
    make: Callable[..., Any] | type[UPGD], gradients: list[list[np.ndarray]] = GRADIENTS
) -> tuple[list[np.ndarray], th.optim.Optimizer]:
    parameters = [nn.Parameter(th.tensor(value)) for value in START]
    optimizer = make(parameters)
    for each in gradients:
        for parameter, gradient in zip(parameters, each, strict=True):
            parameter.grad = th.tensor(gradient)
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters], optimizer


def adam_steps(
    gradients: list[list[np.ndarray]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Iterator[list[np.ndarray]]:
    """Adam's steps, one list a step."""
    m: list[Any] = [0.0, 0.0]
    v: list[Any] = [0.0, 0.0]
    for t, each in enumerate(gradients, 1):
        m = [betas[0] * a + (1 - betas[0]) * g for a, g in zip(m, each, strict=True)]
        v = [betas[1] * a + (1 - betas[1]) * g**2 for a, g in zip(v, each, strict=True)]
        yield [
            -lr * a / (1 - betas[0] ** t) / (np.sqrt(b / (1 - betas[1] ** t)) + eps) for a, b in zip(m, v, strict=True)
        ]


def upgd_in_numpy(lr: float, decay: float) -> list[np.ndarray]:
    theta = [value.copy() for value in START]
    utility = [np.zeros_like(value) for value in START]
    for t, (gradients, steps) in enumerate(zip(GRADIENTS, adam_steps(GRADIENTS, lr, eps=1e-5), strict=True), 1):
        utility = [0.999 * u - 0.001 * g * p for u, g, p in zip(utility, gradients, theta, strict=True)]
        corrected = [u / (1 - 0.999**t) for u in utility]
        scale = max(u.max() for u in corrected)
        assert scale > 0
        gates = [1 / (1 + np.exp(-u / scale)) for u in corrected]
        theta = [
            (1 - lr * decay * (p.ndim > 1)) * p + 2 * (1 - s) * step
            for p, s, step in zip(theta, gates, steps, strict=True)
        ]
    return theta


def test_upgd_without_noise() -> None:
    found, _ = run(lambda p: UPGD(p, lr=0.01, weight_decay=0.1, sigma=0))
    for one, other in zip(found, upgd_in_numpy(0.01, 0.1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_upgds_noise_is_gated_scaled_and_only_for_matrices() -> None:
    quiet, _ = run(lambda p: UPGD(p, lr=0.01, sigma=0), GRADIENTS[:1])
    loud, _ = run(lambda p: UPGD(p, lr=0.01, sigma=0.5), GRADIENTS[:1])
    assert (quiet[1] == loud[1]).all()
    xi = th.randn(3, 2, generator=th.Generator().manual_seed(1), dtype=th.float64).numpy()
    utility = [-g * p for g, p in zip(GRADIENTS[0], START, strict=True)]
    gate = 1 / (1 + np.exp(-utility[0] / max(u.max() for u in utility)))
    np.testing.assert_allclose(quiet[0] - loud[0], 2 * 0.01 * (1 - gate) * 0.5 * xi, atol=1e-14)


def test_upgd_where_no_utility_is_positive_and_where_a_gradient_is_missing() -> None:
    found, _ = run(lambda p: UPGD(p, lr=0.1, weight_decay=0, sigma=0), [[np.sign(value) for value in START]])
    # All utilities are -|theta|: the largest |theta| has the smallest, and its gate is sigmoid(-1).
    largest = np.abs(START[0]).max() if np.abs(START[0]).max() > np.abs(START[1]).max() else np.abs(START[1]).max()
    for start, end in zip(START, found, strict=True):
        gate = 1 / (1 + np.exp(np.abs(start) / largest))
        np.testing.assert_allclose(end, start - 0.2 * (1 - gate) * np.sign(start), atol=1e-5)
    alone = nn.Parameter(th.ones(2))
    UPGD([alone]).step()
    assert alone.tolist() == [1, 1]


def test_trac() -> None:
    lr, betas = 0.05, np.array([0.9, 0.99])
    theta = [value.copy() for value in START]
    v, q, s = np.zeros(2), np.full(2, 1e-8), np.zeros(2)
    scales = []
    for gradients, steps in zip(GRADIENTS, adam_steps(GRADIENTS, lr), strict=True):
        deltas = [(p - start) / (s.sum() + 1e-8) for p, start in zip(theta, START, strict=True)]
        h = sum((d * g).sum() for d, g in zip(deltas, gradients, strict=True))
        v, q = betas**2 * v + h**2, betas * q - h
        s = 0.1 / scipy.special.erfi(math.sqrt(0.5)) * scipy.special.erfi(q / (np.sqrt(2 * v) + 1e-8))
        scales.append(s.sum())
        theta = [start + max(s.sum(), 0) * (d + step) for start, d, step in zip(START, deltas, steps, strict=True)]
    found, optimizer = run(lambda p: TRAC(p, lr=lr, discounts=betas.tolist(), s_init=0.1))
    assert max(scales) > 0
    np.testing.assert_allclose(optimizer.state_dict()["state"]["trac"]["scale"].sum(), scales[-1], rtol=1e-6)
    for one, other in zip(found, theta, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("x", [0.0, 1e-9, -0.7, 1.0, 5.0, -25.0])
def test_erfi(x: float) -> None:
    assert erfi(x) == pytest.approx(scipy.special.erfi(x), rel=1e-13)
    assert math.isfinite(erfi(1e6))


def test_muon_takes_the_matrices_and_adam_the_rest() -> None:
    found, _ = run(lambda p: MuonAdam(p, lr=0.01, min_rows=3, weight_decay=0.1))
    steps = list(adam_steps(GRADIENTS, 0.01))
    np.testing.assert_allclose(found[1], START[1] + sum(step[1] for step in steps), rtol=1e-10)
    matrix = nn.Parameter(th.tensor(START[0]))
    muon = th.optim.Muon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradients in GRADIENTS:
        matrix.grad = th.tensor(gradients[0])
        muon.step()
    assert (found[0] == matrix.detach().numpy()).all()
    # By hand: the first step is .2 sqrt(3) lr times a matrix with singular values near 1.
    one, _ = run(lambda p: MuonAdam(p, lr=0.01, min_rows=3), GRADIENTS[:1])
    singular = np.linalg.svd((one[0] - START[0]) / (0.2 * 3**0.5 * 0.01), compute_uv=False)
    assert (np.abs(singular - 1) < 0.4).all()
    few, _ = run(lambda p: MuonAdam(p, lr=0.01, min_rows=4))
    np.testing.assert_allclose(few[0], START[0] + sum(step[0] for step in steps), rtol=1e-10)


@pytest.mark.parametrize("optimizer", [UPGD, TRAC, MuonAdam])
def test_saved_state_goes_on_bit_for_bit(optimizer: Callable[..., th.optim.Optimizer]) -> None:
    whole, _ = run(optimizer)
    _, first = run(optimizer, GRADIENTS[:3])
    parameters = [nn.Parameter(p.detach().clone()) for p in first.param_groups[0]["params"]]
    second = optimizer(parameters)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for gradients in GRADIENTS[3:]:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = th.tensor(gradient)
        second.step()
    assert all((p.detach().numpy() == value).all() for p, value in zip(parameters, whole, strict=True))


@pytest.mark.parametrize("optimizer", [UPGD, TRAC, MuonAdam])
def test_an_agent_learns_with_it_saves_and_goes_on(optimizer: type[th.optim.Optimizer], tmp_path: Path) -> None:
    def make() -> PPO:
        kwargs = dict(optimizer_class=optimizer, net_arch=[32])
        return PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=8, n_epochs=1, seed=0, policy_kwargs=kwargs)

    model = make().learn(32)
    calls = []
    model.policy.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=model.get_env())
    model.train()
    assert len(calls) == 2  # hooks run once a step, around all of it
    rows = copy.deepcopy(model.policy.optimizer.state_dict()["param_groups"])
    assert again.policy.optimizer.state_dict()["param_groups"][0].keys() == rows[0].keys()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: UPGD(p, lr=-1), "`lr` must be a finite number >= 0, got -1"),
        (lambda p: UPGD(p, beta_utility=1), "`beta_utility` must be a finite number >= 0 and < 1, got 1"),
        (lambda p: UPGD(p, sigma=-1), "`sigma` must be"),
        (lambda p: TRAC(p, discounts=[1.0]), "`discounts` must be"),
        (lambda p: TRAC(p, s_init=0), "`s_init` must be"),
        (lambda p: MuonAdam(p, betas=(1, 0.9)), "`betas` must be"),
        (lambda p: MuonAdam(p, min_rows=0), "`min_rows` must be"),
    ],
)
def test_bad_arguments(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(th.ones(2, 2))])
