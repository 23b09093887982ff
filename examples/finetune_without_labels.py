"""Take the checkerboard out of a trained generator without data: its own pictures are what is to stay.

    python examples/finetune_without_labels.py        # the package's face generator, about a CPU minute

One flat script to copy and change for a model of your own: replace the model and what it is fed.
`pixelize finetune repair` is the same with controls, resuming and a report.
"""

from __future__ import annotations

import copy

import torch
from rich.progress import track

import pixelize
from pixelize.demo.generator import LATENT_CHANNELS, load_demo_model
from pixelize.recipes.artifact_loss import ArtifactLoss, natural_level, without_artifact

STEPS, BATCH, LR = 100, 16, 3e-4

teacher = load_demo_model().requires_grad_(False)
model = pixelize.convert(copy.deepcopy(teacher), "ipixeldcl").requires_grad_(
    True
)  # computes what it did before
artifact = ArtifactLoss(natural_level(None))  # or natural_level(real_pictures)
optimizer = torch.optim.Adam(pixelize.param_groups(model, LR))
fresh = torch.randn(256, LATENT_CHANNELS, generator=torch.Generator().manual_seed(1))

torch.manual_seed(0)
for step in track(range(STEPS), "repairing"):
    latents = torch.randn(BATCH, LATENT_CHANNELS)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("highest", group["lr"]) * min(1, (step + 1) / 10) * (1 - step / STEPS)
    pictures = model(latents)
    change = without_artifact(pictures - teacher(latents))  # all that is not artifact is to stay
    loss = artifact(pictures) + 300 * change.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

for name, network in (("before", teacher), ("after", model)):
    with torch.no_grad():
        measured = pixelize.checkerboard(network(fresh))
    print(name, {f: f"{level:.1f} dB" for f, level in measured["global"].items()})
pixelize.save(model, "runs/repaired")
