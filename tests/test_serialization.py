"""`save` and `load`: a fresh model becomes the converted one; anything else is refused and changes
nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from wrapped import WRAPPERS, Decoder

import pixelize

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def trained(layer="ipixeldcl", wrap="plain", **options):
    model = pixelize.convert(Decoder(WRAPPERS[wrap]), layer, **options).eval()
    for name, p in model.named_parameters():
        if "dependency" in name:
            nn.init.normal_(p, 0, 0.1)
    return model


@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_round_trip(tmp_path, wrap, layer):
    model = trained(layer, wrap, schedule="masked", exclude="last")
    if layer == "ipixeldcl":
        pixelize.set_input_gate(model, 0.25)
    folder = pixelize.save(model, tmp_path / "deep" / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "pixelize.json"]
    fresh = Decoder(WRAPPERS[wrap]).eval()
    loaded = pixelize.load(folder, into=fresh)
    x = torch.randn(2, 3, 3, 2)
    assert loaded is fresh
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    assert {s.name for s in pixelize.report(loaded).converted} == {"up", "twice"}
    assert loaded.twice is loaded.again
    pixelize.load(
        folder, into=loaded
    )  # into a model that is converted the same way: only the weights are read


def test_a_loaded_model_can_be_saved_folded_and_trained_again(tmp_path):
    model = trained()
    loaded = pixelize.load(pixelize.save(model, tmp_path / "a"), into=Decoder().eval())
    again = pixelize.load(pixelize.save(loaded, tmp_path / "b"), into=Decoder().eval())
    x = torch.randn(2, 3, 3, 2)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(pixelize.fold(again)(x), pixelize.fold(model)(x), rtol=0, atol=0)
    again(x).square().sum().backward()
    with pytest.raises(pixelize.PixelizeError, match="fold"):
        pixelize.revert(pixelize.load(pixelize.save(trained("pixeldcl"), tmp_path / "c"), into=Decoder()))


def test_a_fresh_process_gives_the_same_pictures(tmp_path):
    from pixelize.demo.generator import load_demo_model

    model = pixelize.convert(load_demo_model(), include=["up3", "up4"])
    nn.init.normal_(model.up4.dependency_kernels[0], 0, 0.1)
    pixelize.save(model, tmp_path / "out")
    z = torch.randn(2, 64)
    torch.save({"z": z, "y": model.eval()(z).detach()}, tmp_path / "expected.pt")
    code = (
        "import sys, torch, pixelize\nfrom pixelize.demo.generator import FaceGenerator\n"
        "model = pixelize.load(sys.argv[1] + '/out', into=FaceGenerator()).eval()\n"
        "e = torch.load(sys.argv[1] + '/expected.pt', weights_only=True)\n"
        "assert (model(e['z']) - e['y']).abs().max() <= 1e-6\nprint('same')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "same", done.stderr


def damaged(folder, how):
    plan, weights = folder / "pixelize.json", folder / "model.safetensors"
    contents = json.loads(plan.read_text())
    match how:
        case "no plan":
            plan.unlink()
        case "no weights":
            weights.unlink()
        case "a flipped byte":
            raw = bytearray(weights.read_bytes())
            raw[-1] ^= 1
            weights.write_bytes(raw)
        case "cut short":
            weights.write_bytes(weights.read_bytes()[:-10])
        case "not JSON":
            plan.write_text("{")
        case "another JSON":
            plan.write_text("[]")
        case "a later format":
            plan.write_text(json.dumps(contents | {"format": 99}))
        case "a site without geometry":
            del contents["sites"][0]["geometry"]
            plan.write_text(json.dumps(contents))
        case "an unknown layer":
            contents["sites"][0]["layer"] = "os.system"
            plan.write_text(json.dumps(contents))


DAMAGE = [
    "no plan", "no weights", "a flipped byte", "cut short", "not JSON", "another JSON", "a later format",
    "a site without geometry", "an unknown layer",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_folders_are_refused(tmp_path, how):
    folder = pixelize.save(trained(), tmp_path / "out")
    damaged(folder, how)
    fresh = Decoder()
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(pixelize.LoadError, match="out"):
        pixelize.load(folder, into=fresh)
    after = fresh.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert type(fresh.up) is nn.ConvTranspose2d


class Other(Decoder):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 5, 4, 2, 1)
        self.norm = nn.BatchNorm2d(5)


class Longer(Decoder):
    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(2, 2)


class Without(nn.Module):
    pass


class Different(Decoder):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "other, message",
    [(Other, "channels"), (Longer, "extra"), (Without, "does not have"), (Different, "does not fit")],
)
def test_another_model_is_refused(tmp_path, other, message):
    folder = pixelize.save(trained(), tmp_path / "out")
    fresh = other()
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(pixelize.LoadError, match=message):
        pixelize.load(folder, into=fresh)
    assert before.keys() == fresh.state_dict().keys()
    assert all(torch.equal(before[k], v) for k, v in fresh.state_dict().items())


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(pixelize.PixelizeError, match="no converted layers"):
        pixelize.save(Decoder(), tmp_path / "out")
    with torch.device("meta"):
        model = Decoder()
    with pytest.raises(pixelize.PixelizeError, match="meta device"):
        pixelize.save(pixelize.convert(model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_and_a_failed_save_leaves_the_old_one(tmp_path, full_disk):
    model = trained()
    folder = pixelize.save(model, tmp_path / "out")
    (folder / "notes.txt").write_text("mine")
    nn.init.zeros_(model.up.bias)
    pixelize.save(model, folder)
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(pixelize.load(folder, into=Decoder().eval())(x), model(x), rtol=0, atol=0)
    with full_disk(300), pytest.raises(OSError):
        pixelize.save(trained(), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "notes.txt", "pixelize.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    torch.testing.assert_close(pixelize.load(folder, into=Decoder().eval())(x), model(x), rtol=0, atol=0)


def test_meta_models_are_filled(tmp_path):
    model = trained()
    folder = pixelize.save(model, tmp_path / "out")
    with torch.device("meta"):
        fresh = Decoder()
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(pixelize.load(folder, into=fresh).eval()(x), model(x), rtol=0, atol=0)


def test_a_repaired_model_is_saved_without_being_converted(tmp_path):
    def make() -> nn.Sequential:
        torch.manual_seed(0)
        up, line = nn.ConvTranspose2d(4, 3, 4, 2, 1), torch.tensor([1.0, 3, 3, 1]) / 4
        with torch.no_grad():  # bilinear, but for a little unevenness
            up.weight.copy_(line * line[:, None] * (1 + 0.05 * torch.randn(4, 3, 4, 4)))
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), up)

    model = pixelize.repair(make(), example_inputs=torch.randn(2, 3, 16, 16), progress=False)
    pixelize.save(model, tmp_path / "out")
    loaded = pixelize.load(tmp_path / "out", into=make())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    changed = [site.name for site in pixelize.repair_report(model).repaired]
    assert changed == ["1"] and "1: repaired before it was saved" in pixelize.report(loaded).notes
    with pytest.raises(pixelize.PixelizeError, match="nor was it repaired"):
        pixelize.save(make(), tmp_path / "other")
    with pytest.raises(pixelize.LoadError):
        pixelize.load(tmp_path / "out", into=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def test_a_save_that_was_interrupted_leaves_no_lock(tmp_path, monkeypatch):
    saved_folder = sys.modules["pixelize.conversion.saved_folder"]
    model = trained()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(saved_folder, "write_text", interrupted)
        pixelize.save(model, tmp_path / "out")
    pixelize.save(model, tmp_path / "out")  # would wait for ever
