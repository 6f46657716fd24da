"""functional_call replaces every tensor wherever it is used, and leaves none behind."""

import torch as th
from torch import nn

from sb3_plasticity.common.functional import evaluation_mode, functional_call


class Shared(nn.Module):
    """One layer under two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.alias = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: th.Tensor) -> th.Tensor:
        result: th.Tensor = self.norm(self.tied(self.alias(self.first(x))))
        return result


def test_shared_modules_and_tied_weights() -> None:
    th.manual_seed(0)
    module = Shared().eval()
    before = dict(module.named_parameters()) | dict(module.named_buffers())
    values = {name: tensor.clone() for name, tensor in before.items()}
    other = Shared().eval()
    x = th.randn(5, 2)
    for _ in range(2):
        params = {name: value.detach().clone().requires_grad_() for name, value in other.named_parameters()}
        result = functional_call(module, params, (x,))
        th.testing.assert_close(result, other(x), rtol=0, atol=0)
        gradients = th.autograd.grad(result.square().sum(), list(params.values()))
        expected = th.autograd.grad(other(x).square().sum(), list(other.parameters()))
        for left, right in zip(gradients, expected, strict=True):
            th.testing.assert_close(left, right, rtol=0, atol=0)
    after = dict(module.named_parameters()) | dict(module.named_buffers())
    assert all(after[name] is tensor and th.equal(tensor, values[name]) for name, tensor in before.items())
    assert module.first is module.alias and module.tied.weight is module.first.weight


def test_buffers_and_partial_replacement() -> None:
    module = nn.BatchNorm1d(2).eval()
    x = th.tensor([[1.0, 2.0]])
    result = functional_call(
        module, {"running_mean": th.tensor([1.0, 1.0]), "running_var": th.tensor([1.0, 0.25])}, (x,)
    )
    th.testing.assert_close(result, th.tensor([[0.0, 2.0]]), rtol=1e-4, atol=1e-6)
    assert th.equal(module.get_buffer("running_mean"), th.zeros(2))


def test_evaluation_mode_leaves_everything_as_it_was() -> None:
    module = nn.Sequential(nn.Dropout(), nn.LSTM(2, 3), nn.BatchNorm1d(3).eval())
    enabled = th.backends.cudnn.enabled
    with evaluation_mode(module):
        assert not any(part.training for part in module.modules())
        assert not th.backends.cudnn.enabled  # whose recurrent layers have no gradients in evaluation mode
    assert [part.training for part in module] == [True, True, False]
    assert th.backends.cudnn.enabled == enabled
    with evaluation_mode(module[0]):
        assert th.backends.cudnn.enabled == enabled
