"""On a device whose tensors do not mix with the CPU's, with and without float64: everything stays where the
model is, follows it when it moves, and leaves the device's random numbers alone.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from dataclasses import replace

import pytest
import second_device
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import pixelize
from pixelize.rewrites.state.random_state import random_state_kept
from pixelize.running.models import copy_model
from pixelize.running.outputs import relative_error

pytestmark = [
    pytest.mark.skipif(second_device.missing() is not None, reason=str(second_device.missing())),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pixelize.PixelizeWarning"),
    pytest.mark.timeout(300),  # the first test compiles
]
THERE = "second"
KINDS = ("conv_transpose", "resize_conv", "pixel_shuffle", "resize")


@pytest.fixture(autouse=True)
def device(request):
    found = second_device.start()
    found.compiled.allow_float64(getattr(request, "param", "float64") == "float64")
    yield found
    found.compiled.allow_float64(True)
    found.compiled.allow_generators(True)


both = pytest.mark.parametrize("device", ["float64", "no float64"], indirect=True)


class Net(nn.Module):
    """A site of every kind, and one that a norm computes the weight of."""

    def __init__(self, norm=lambda module: module, mode="nearest"):
        super().__init__()
        self.mode = mode
        self.up, self.norm = norm(nn.ConvTranspose2d(6, 4, 4, 2, 1)), nn.BatchNorm2d(4)
        self.shuffled = nn.Conv2d(4, 8, 3, padding=1)
        self.resized = nn.Conv2d(4, 3, 3, padding=1)
        self.bare = nn.Upsample(scale_factor=2, mode=mode)
        self.w = nn.Parameter(torch.randn(3, 3, 4, 4) / 4)

    def forward(self, x):
        small = F.pixel_shuffle(self.shuffled(torch.relu(self.norm(self.up(x)))), 2)
        skip = F.interpolate(small[:, :2], scale_factor=2.0, mode=self.mode)
        y = self.resized(torch.cat([F.interpolate(small, scale_factor=2.0, mode=self.mode), skip], 1))
        return F.conv_transpose2d(self.bare(y), self.w, None, 2, 1)


def net(*args, **kwargs):
    torch.manual_seed(0)
    return Net(*args, **kwargs).eval()


def inputs(n=4):
    return torch.randn(n, 6, 3, 3, generator=torch.Generator().manual_seed(1))


NORMS = {
    "plain": lambda m: m,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
}


def all_there(model):
    """Every parameter, buffer and tensor kept on a module lies on the device."""
    held = [*model.named_parameters(), *model.named_buffers()]
    for name, module in model.named_modules():
        held += [(f"{name}.{k}", v) for k, v in module.__dict__.items() if isinstance(v, torch.Tensor)]
    assert [name for name, t in held if t.device.type != THERE] == []
    return model


def same(a, b, tolerance=1e-5):
    error = relative_error(a.detach().cpu().float(), b.detach().cpu().float())
    assert error < tolerance


@both
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl", "dcl"])
def test_a_conversion_stays_on_the_device(layer, mode, tmp_path):
    here = net(mode=mode)
    model, x = copy.deepcopy(here).to(THERE), inputs().to(THERE)
    converted = all_there(pixelize.convert(model, layer, example_inputs=x, sites=KINDS))
    wanted = pixelize.convert(here, layer, example_inputs=inputs(), sites=KINDS)(inputs())
    same(converted(x), wanted, 2e-3 if layer == "pixeldcl" else 1e-5)
    trained = copy.deepcopy(converted).train()
    trained(x).square().mean().backward()
    all_there(trained)
    if layer != "dcl":
        folded = all_there(pixelize.fold(converted))(x)
        if layer == "ipixeldcl":  # whose dependency kernels are zero: at the border too
            same(folded, converted(x))
    folder = pixelize.save(converted, tmp_path / "out")
    same(all_there(pixelize.load(folder, net(mode=mode).to(THERE)))(x), converted(x))
    same(pixelize.load(folder, net(mode=mode))(inputs()), converted(x))
    same(all_there(pixelize.revert(converted))(x), here(inputs()))


@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
@pytest.mark.parametrize("norm", NORMS)
def test_norms_stay_on_the_device_and_follow_it(norm, layer, tmp_path):
    here = net(NORMS[norm])
    wanted = here(inputs())
    model, x = copy_model(here).to(THERE), inputs().to(THERE)
    model(x)
    converted = all_there(pixelize.convert(model, layer, example_inputs=x))
    out = converted(x)
    fresh = net(NORMS[norm]).to(THERE)
    fresh(x)
    same(all_there(pixelize.load(pixelize.save(converted, tmp_path / "out"), fresh))(x), out)
    same(all_there(pixelize.revert(copy_model(converted)))(x), wanted)
    moved = pixelize.convert(here, layer, example_inputs=inputs()).to(THERE)
    moved(x)
    same(all_there(pixelize.revert(moved))(x), wanted)


@both
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
def test_what_a_conversion_keeps_follows_the_model(layer, steps):
    converted = pixelize.convert(net(), layer, example_inputs=inputs()).to(THERE)
    all_there(pixelize.calibrate(converted, [inputs(16).to(THERE)], joint_steps=steps, progress=False))
    same(all_there(pixelize.revert(converted))(inputs().to(THERE)), net()(inputs()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
def test_it_follows_a_change_of_type(layer, dtype, device):
    converted = pixelize.convert(net(), layer, example_inputs=inputs()).to(dtype)
    pixelize.calibrate(converted, [inputs(16).to(dtype)], progress=False)
    assert {p.dtype for p in converted.parameters()} == {dtype}
    reverted = pixelize.revert(converted)
    assert {p.dtype for p in reverted.parameters()} == {dtype}
    same(reverted(inputs().to(dtype)), net()(inputs()), 0.05 if dtype.itemsize < 4 else 1e-5)


def test_a_failed_revert_after_a_move_keeps_what_was_kept():
    converted = pixelize.convert(net(), "pixeldcl").half()
    for parameter in converted.up.parameters():
        nn.init.normal_(parameter)
    with pytest.raises(pixelize.PixelizeError, match="trained"):
        pixelize.revert(converted)
    record = pixelize.inheritance.record.record_of(converted.up)
    assert record.origin[1]["_parameters"]["weight"].dtype == torch.float32


@both
def test_designs_are_chosen_on_the_device():
    x = inputs(16).to(THERE)
    model = pixelize.convert(net().to(THERE), "auto", example_inputs=x, data=[x], tolerance=0.5)
    assert all(row.error is not None for row in pixelize.report(all_there(model)).converted)


@both
@pytest.mark.parametrize("layer", ["dcl", "3x3", "ipixeldcl"])
def test_a_repair_stays_on_the_device(layer):
    model = nn.Sequential(nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1))
    data = torch.randn(40, 6, 8, 8)
    all_there(pixelize.repair(model.eval().to(THERE), data.to(THERE), layer=layer, progress=False))


@both
def test_inputs_on_the_cpu_go_where_the_model_is():
    model = net().to(THERE)
    pixelize.inspect(model, inputs())
    converted = pixelize.convert(model, "pixeldcl", example_inputs=inputs())
    all_there(pixelize.calibrate(converted, [inputs(16)], progress=False))


@both
def test_gates_close_on_the_device():
    model, x = pixelize.convert(net().to(THERE), example_inputs=inputs()), inputs().to(THERE)
    for g in (0.5, 0.25, 0.0):
        pixelize.set_input_gate(model, g)
        model(x)
        pixelize.fold(model)(x)
    all_there(pixelize.harden(model))(x)


@pytest.mark.parametrize("generators", [True, False])
@pytest.mark.parametrize("where", ["cpu", THERE])
@pytest.mark.parametrize("what", ["inspect", "convert", "calibrate"])
def test_the_devices_random_numbers_are_left_alone(device, where, what, generators):
    device.compiled.allow_generators(generators)

    class Noisy(Net):
        def forward(self, x):
            return super().forward(x + 0.01 * torch.randn_like(x))

    model, x = Noisy().eval().to(where), inputs().to(where)
    converted = pixelize.convert(model, "pixeldcl", example_inputs=x)
    torch.manual_seed(5)
    torch.rand(3, device=THERE)
    before, seeded, here = device.get_rng_state().clone(), device.seeded, torch.get_rng_state()
    match what:
        case "inspect":
            pixelize.inspect(model, x)
        case "convert":
            pixelize.convert(model, example_inputs=x)
        case "calibrate":
            pixelize.calibrate(converted, [x], progress=False)
    assert torch.equal(before, device.get_rng_state()) and device.seeded == seeded
    assert torch.equal(here, torch.get_rng_state())


@pytest.mark.parametrize("lacking", ["generators", "seeding", "states"])
def test_a_device_is_seeded_as_far_as_it_can_be(device, lacking, monkeypatch):
    device.compiled.allow_generators(False)
    if lacking == "seeding":
        monkeypatch.delattr(type(device), "manual_seed")
    if lacking == "states":
        monkeypatch.delattr(type(device), "get_rng_state")
    before, drawn = torch.get_rng_state(), []
    for _ in range(2):
        with random_state_kept([torch.device(THERE)], 3):
            drawn.append((torch.rand(4), torch.rand(4, device=THERE).cpu()))
    (here, there), (here_again, there_again) = drawn
    assert torch.equal(here, here_again) and torch.equal(before, torch.get_rng_state())
    # what can neither be read nor seeded goes on
    assert torch.equal(there, there_again) == (lacking != "states")


@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
def test_a_model_on_two_devices(layer):
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.ConvTranspose2d(4, 3, 4, 2, 1)

        def forward(self, x):
            return self.last(self.first(x).relu().to(self.last.weight.device))

    torch.manual_seed(0)
    model = Split().eval()
    wanted = model(inputs())
    model.last.to(THERE)
    converted = pixelize.convert(model, layer, example_inputs=inputs())
    assert {p.device.type for p in converted.first.parameters()} == {"cpu"}
    assert {p.device.type for p in converted.last.parameters()} == {THERE}
    if layer == "ipixeldcl":
        same(converted(inputs()), wanted)
    pixelize.calibrate(converted, [inputs(16)], progress=False)
    same(pixelize.revert(converted)(inputs()), wanted)


@pytest.mark.parametrize("layer", [pixelize.iPixelDCL2d, pixelize.PixelDCL2d])
def test_a_layer_never_waits_for_the_device(device, layer):
    made = layer(4, 4, 4, 2, 1, device=THERE)
    x = torch.randn(2, 4, 5, 5).to(THERE).requires_grad_()
    made(x)
    device.compiled.clear()
    made(x).sum().backward()
    assert device.compiled.transfers() == {}


@both
def test_autocast_and_channels_last():
    model = pixelize.convert(net().to(THERE), example_inputs=inputs()).to(memory_format=torch.channels_last)
    x = inputs().to(THERE)
    wanted = model(x)
    with torch.autocast(THERE, torch.bfloat16):
        same(model(x), wanted, 0.05)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        here = pixelize.convert(net(), example_inputs=inputs())
    assert pixelize.report(here).error < 1e-5


@both
def test_measures_agree_with_the_cpu():
    pictures = torch.rand(3, 3, 24, 20)
    here, there = pixelize.checkerboard(pictures), pixelize.checkerboard(pictures.to(THERE))
    assert repr(here) == repr(there) or here == pytest.approx(there, abs=1e-3)


@both
def test_the_metric_and_the_page_are_made_on_the_device(tmp_path):
    pytest.importorskip("torchmetrics")
    from pixelize.measure.metric import CheckerboardMetric

    pictures = torch.rand(4, 3, 32, 28)
    there, here = CheckerboardMetric().to(THERE), CheckerboardMetric()
    for metric in (there, here):
        for batch in pictures.split(2):
            metric.update(batch.to(THERE))
    found = [{name: float(v) for name, v in metric.compute().items()} for metric in (there, here)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    there.reset()
    model = nn.Sequential(nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1))
    pixelize.write_report(model.eval().to(THERE), tmp_path / "page.html", inputs=torch.randn(4, 6, 8, 8))
    assert (tmp_path / "page.html").stat().st_size


def test_a_default_device_changes_nothing():
    model, x, data = net(), inputs(), [inputs(16)]
    torch.set_default_device(THERE)
    try:
        converted = pixelize.convert(model, "pixeldcl", example_inputs=x)
        pixelize.calibrate(converted, data, progress=False)
    finally:
        torch.set_default_device(None)
    assert {p.device.type for p in converted.parameters()} == {"cpu"}


class Stop(TorchDispatchMode):
    """Raises before the ``n``-th operator; without ``n`` it counts them, and those on the device."""

    def __init__(self, n=0):
        super().__init__()
        self.n, self.count, self.there = n, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.n:
            raise KeyboardInterrupt
        result = func(*args, **(kwargs or {}))
        self.there += isinstance(result, torch.Tensor) and result.device.type == THERE
        return result


RECIPES = {
    "segmentation": {"arms": "annealed", "ema": 0.5, "base_steps": 1, "size": 16, "width": 4},
    "vae": {"arms": "pixeldcl", "base_steps": 1, "size": 16, "width": 4, "samples": 4},
    "gan": {"arms": "pixeldcl", "size": 16, "width": 4, "samples": 4},
    "repair": {"arms": "ipixeldcl", "samples": 4},
}


@pytest.mark.parametrize("device", ["no float64"], indirect=True)
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_evaluate_and_go_on_on_the_device(name, tmp_path, monkeypatch):
    for needed in ("accelerate", "torchmetrics", "torchvision", "tensorboard"):
        pytest.importorskip(needed)
    from accelerate.state import PartialState

    from pixelize.recipes import recipe_settings
    from pixelize.recipes.training.checkpoint import load_checkpoint

    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", f"{THERE}:0")
    PartialState._reset_state()
    recipe = importlib.import_module(f"pixelize.recipes.{name}")
    settings = getattr(recipe_settings, f"{name.capitalize()}Settings")(
        **RECIPES[name], steps=4, batch=4, limit=12, eval_every=2, save_every=1, warmup=1, precision="bf16"
    )

    def results(out, stop):
        with stop:
            recipe.run(replace(settings, out=str(tmp_path / out)))
        tensors, state = load_checkpoint(tmp_path / out / f"{settings.arms}-seed0" / "checkpoint.safetensors")
        return tensors, state["result"]

    counted = Stop()
    wanted, metrics = results("whole", counted)
    assert counted.there and metrics and PartialState().device.type == THERE
    with pytest.raises(KeyboardInterrupt):
        results("stopped", Stop(round(0.7 * counted.count)))
    found, again = results("stopped", Stop())
    assert again == metrics and all(torch.equal(found[key], wanted[key]) for key in wanted)
    PartialState._reset_state()
