"""Products through oneDNN equal other products, and are asked for only where they are faster."""

import pytest
import torch as th

from sb3_plasticity.common import onednn


@pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("layout", ["rows", "columns", "slice"])
def test_a_layer_is_the_product_in_float64(layout: str) -> None:
    generator = th.Generator().manual_seed(0)
    left, bias = th.randn(20, 30, generator=generator), th.randn(10, generator=generator)
    weight = {
        "rows": th.randn(10, 30, generator=generator),
        "columns": th.randn(30, 10, generator=generator).t(),
        "slice": th.randn(12, 40, generator=generator)[1:11, 5:35],
    }[layout]
    expected = left.double() @ weight.double().t()
    th.testing.assert_close(onednn.linear(left, weight, None).double(), expected, rtol=1e-5, atol=1e-5)
    th.testing.assert_close(onednn.linear(left, weight, bias).double(), expected + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capability, faster", [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_what_decides(capability: str, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(th.backends.mkldnn, "is_available", lambda: True)
    large, small = th.ones(128, 128), th.ones(128, 127)
    assert onednn.is_faster() is faster
    assert onednn.pays(large, large) is faster
    assert not onednn.pays(small, small)
    assert not onednn.pays(large.double(), large.double())
    assert float(onednn.product(large, large).sum()) == 128**3
