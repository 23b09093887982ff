"""The main job on real input: a DCGAN that somebody else trained (PyPI package gan-face-generate)."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import pixelize

pytest.importorskip("gan_face_generate")

BUILD = """
import torch
from importlib import resources
from gan_face_generate.models import Generator
def build(trained):
    model = Generator(0, 3, 100, 64)
    if trained:
        found = resources.files("gan_face_generate") / "weights.tar"
        state = torch.load(str(found), map_location="cpu", weights_only=True)
        model.load_state_dict(state["netG_state_dict"])
    return model.eval()
"""


def test_converted_saved_and_loaded_in_a_fresh_process(tmp_path):
    scope: dict = {}
    exec(BUILD, scope)
    model = scope["build"](trained=True)
    z = torch.randn(8, 100, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pictures = model(z)
    converted = pixelize.convert(model, example_inputs=z[:2])
    report = pixelize.report(converted)
    assert len(report.converted) == 4 and len(report.skipped) == 1 and "stride 1" in report.skipped[0].reason
    assert report.error <= 1e-5
    with torch.no_grad():
        assert (converted(z) - pictures).abs().max() <= 1e-5
        for kernel in converted.main[12].dependency_kernels:  # what a training would have changed
            kernel.normal_(0, 0.1)
        changed = converted(z)
    assert (changed - pictures).abs().max() > 1e-2
    pixelize.save(converted, tmp_path / "model")
    torch.save({"z": z, "pictures": changed}, tmp_path / "expected.pt")
    code = BUILD + (
        "import sys, pixelize\nexpected = torch.load(sys.argv[1] + '/expected.pt', weights_only=True)\n"
        "model = pixelize.load(sys.argv[1] + '/model', into=build(trained=False)).eval()\n"
        "with torch.no_grad():\n    error = (model(expected['z']) - expected['pictures']).abs().max()\n"
        "print(error.item() <= 1e-5, type(model).__name__, len(pixelize.report(model).converted))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "Generator", "4"], done.stderr
