"""The dependency kernels by themselves: a small file that makes a fresh conversion the trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from wrapped import WRAPPERS, Decoder

import pixelize


def fresh(wrap: str = "plain", **options) -> nn.Module:
    torch.manual_seed(0)
    return pixelize.convert(Decoder(WRAPPERS[wrap]).eval(), **{"dependency_groups": -1, **options})


def trained(**options) -> nn.Module:
    model = fresh(**options)
    for name, parameter in model.named_parameters():
        if "dependency_kernels" in name:
            nn.init.normal_(parameter, 0, 0.1)
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_small_file_makes_a_fresh_conversion_the_trained_model(tmp_path: Path, wrap: str) -> None:
    model, x = trained(wrap=wrap), torch.randn(2, 3, 3, 2)
    path = tmp_path / "adapter.safetensors"
    save_file(pixelize.adapter_state_dict(model), path)
    loaded = pixelize.load_adapter(fresh(wrap=wrap), path)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    again = pixelize.load_adapter(fresh(wrap=wrap), pixelize.adapter_state_dict(model))
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert (fresh(wrap=wrap)(x) - model(x)).abs().max() > 1e-3  # the kernels do something


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    adapter = pixelize.adapter_state_dict(trained())
    name = sorted(adapter)[-1]
    wrong = {
        "no such kernel": {n: t for n, t in adapter.items() if n != name},
        "elsewhere": {**adapter, "elsewhere": torch.zeros(1)},
        r"\(2, 2\)": {**adapter, name: torch.zeros(2, 2)},
    }
    for told, given in wrong.items():
        model = fresh()
        before = {n: t.clone() for n, t in model.state_dict().items()}
        with pytest.raises(pixelize.LoadError, match=told):
            pixelize.load_adapter(model, given)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(pixelize.LoadError, match="convert it as the model"):
        pixelize.load_adapter(fresh(dependency_groups=1), adapter)
    (tmp_path / "a").write_bytes(b"no safetensors")
    for path in (tmp_path / "a", tmp_path / "missing"):
        with pytest.raises(pixelize.LoadError, match=path.name):
            pixelize.load_adapter(fresh(), path)
    for call in (pixelize.adapter_state_dict, lambda m: pixelize.load_adapter(m, adapter)):
        with pytest.raises(pixelize.PixelizeError, match="convert it first"):
            call(Decoder())


def test_values_that_are_not_there_are_refused_before_anything_is_written() -> None:
    adapter = pixelize.adapter_state_dict(trained())
    last = sorted(adapter)[-1]
    for told, value in (("meta", adapter[last].to("meta")), ("no such kernel", [0.0])):
        model = fresh()
        before = {n: t.clone() for n, t in model.state_dict().items()}
        with pytest.raises(pixelize.LoadError, match=told):
            pixelize.load_adapter(model, {**adapter, last: value})
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(pixelize.LoadError, match="meta"):
        pixelize.load_adapter(fresh().to("meta"), adapter)


def test_every_layer_with_dependency_kernels_and_compiled_models_are_known() -> None:
    def build() -> nn.Module:
        return nn.Sequential(pixelize.iPixelDCL1d(3, 2, 4, 2, 1), pixelize.PixelDCL3d(2, 2, 2, 2))

    one, other = build(), build()
    adapter = pixelize.adapter_state_dict(torch.compile(one))
    assert sorted(adapter) == sorted(n for n, _ in one.named_parameters() if "dependency_kernels" in n)
    pixelize.load_adapter(torch.compile(other), adapter)
    kept = {n: torch.equal(t, one.state_dict()[n]) for n, t in other.state_dict().items()}
    assert all(equal == ("dependency_kernels" in name) for name, equal in kept.items())
