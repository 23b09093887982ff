"""What a stranger's saved folder says its model is built from runs no code and fetches none, unless the user
repeats it.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

import pixelize
from pixelize.errors import LoadError, PixelizeError
from pixelize.sources.models import build_model

EVIL = "open('ran', 'w').close()\nfrom torch import nn\ndef net(): return nn.Identity()\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that pixelize.save wrote, beside code that leaves a file ``ran`` when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    pixelize.save(pixelize.convert(nn.Sequential(nn.ConvTranspose2d(2, 2, 4, 2, 1))), "saved")
    (tmp_path / "saved" / "evil.py").write_text(EVIL)
    config = {
        "model_type": "evil",
        "architectures": ["Evil"],
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
    }
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    return tmp_path / "saved"


def noted(folder, source):
    pixelize.save(pixelize.convert(nn.Sequential(nn.ConvTranspose2d(2, 2, 4, 2, 1))), folder, source=source)
    return str(folder)


@pytest.mark.parametrize(
    "source",
    [
        "evil:net",
        "evil.py:net",
        "./evil.py:net",
        "os:system?command='touch ran'",
        "builtins:exec",
        "torch.hub:load?repo_or_dir=stranger/repo",
        "transformers:saved?trust_remote_code=True",
        "transformers:saved?trust_remote_code=1",
        "transformers:saved?subfolder=&trust_remote_code=true",
        "transformers:stranger/model?trust_remote_code=True",
        "transformers:saved?attn_implementation=stranger/kernel",
        "transformers:saved?use_kernels=True",
        "transformers:saved?code_revision=main",
        "transformers:SamModel?attn_implementation=stranger/kernel",
        "transformers:SamModel?attn_implementation=flash_attention_2",
        "transformers:MaskFormerModel?backbone=stranger/backbone",
        "transformers:MaskFormerModel?backbone_config={'auto_map':1}",
        "transformers:MaskFormerModel?use_pretrained_backbone=True",
        "diffusers:saved?trust_remote_code=True",
        "diffusers:saved?custom_pipeline=evil",
        "diffusers:stranger/model?custom_revision=main",
        "timm:hf-hub:stranger/model",
        "timm:hf_hub:stranger/model",
        "timm:local-dir:saved",
        "timm:resnet18?checkpoint_path=evil.pth",
        "timm:resnet18?pretrained_cfg={'url':'http://stranger/evil.pth'}",
        "timm:resnet18?pretrained_cfg_overlay={'file':'evil.pth'}",
        "timm:resnet18?cache_dir=saved",
        "smp:Unet?encoder_name=tu-hf-hub:stranger/model",
        "smp:Unet?decoder={'a':1}",
        "smp:Unet?activation=a.b/c",
    ],
)
def test_code_and_what_fetches_it_count_only_when_the_user_repeats_them(folder, source):
    with pytest.raises(LoadError, match="if you trust"):
        build_model(noted(folder, source))
    assert not (folder.parent / "ran").exists()
    assert "evil" not in sys.modules


def test_without_an_option_a_librarys_custom_code_is_refused_and_nothing_is_asked(folder, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    for name in (noted(folder, f"transformers:{folder}"), f"transformers:{folder}"):
        with pytest.raises(PixelizeError):
            build_model(name)
    assert not (folder.parent / "ran").exists()


def test_a_config_that_names_kernels_to_fetch_is_refused(folder):
    pytest.importorskip("transformers")
    config = {"model_type": "vit", "encoder": {"attn_implementation": "stranger/kernel"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="stranger/kernel"):
        build_model(f"transformers:{folder}")


def test_what_only_chooses_weights_is_left_out(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    model = build_model("smp:Linknet?encoder_name=resnet18&in_channels=1")
    converted = pixelize.convert(model, example_inputs=torch.randn(1, 1, 32, 32))
    source = "smp:Linknet?encoder_name=resnet18&encoder_weights=imagenet&in_channels=1"
    pixelize.save(converted, tmp_path / "out", source=source)
    again = build_model(str(tmp_path / "out"))  # a download would fail: no host is reached in tests
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(again(x), converted.eval()(x))


def test_the_user_may_repeat_it(folder):
    source = "evil.py:net"
    with pytest.raises(LoadError, match=r"does not (fit|have)"):  # it was built, and is another model
        build_model(noted(folder, source), source=source)
    assert (folder.parent / "ran").exists()
