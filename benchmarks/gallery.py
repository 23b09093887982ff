"""The picture of README: models as they came and repaired, at a size at which the grid is seen.

    python benchmarks/gallery.py

The demo's generator, the generator that gan-face-generate brings, and a U-Net trained here
(small_networks.py); each repaired on inputs of its own, drawn on others. Of each the crop is shown in which
the repair changes most for what else there is. Beside it is its fine detail, less the
mean of 5x5 pixels. What is compared has the same scale of grey. Writes docs/gallery.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from repair_models import levels, load, pictures
from torch import Tensor
from torch.nn import functional as F

import pixelize

MODELS = {
    "demo": "a generator of faces\n(comes with pixelize)",
    "gan-face-generate": "a DCGAN\n(gan-face-generate)",
    "logits": "a U-Net's logits\n(trained here)",
}
_CROP = 28


def crop_of(before: Tensor, after: Tensor) -> tuple[int, int, int]:
    """Picture, row and column of the crop in which most changes, next to the repaired one's fine detail."""
    changed = F.avg_pool2d((before - after).square().mean(1, keepdim=True), _CROP, 4)
    varies = F.avg_pool2d(torch.stack([detail(y) for y in after])[:, None].square(), _CROP, 4)
    share = (changed / (varies + varies.mean() / 20))[:, 0]
    n, row, column = (int(v) for v in torch.unravel_index(share.argmax(), share.shape))
    return n, 4 * row, 4 * column


def main() -> None:
    parser = argparse.ArgumentParser(description="Models before and after a repair.")
    parser.add_argument("--fit", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "gallery.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figure, axes = plt.subplots(len(MODELS), 5, figsize=(15.5, 9.6), layout="constrained")
    for line, (name, title) in zip(axes, MODELS.items(), strict=True):
        model, given, fresh, _ = load(name, None, 0, args.fit)
        repaired = pixelize.repair(model, given, progress=False)
        before, after = pictures(model, fresh[:64]), pictures(repaired, fresh[:64])
        if name == "logits":  # one class is enough to look at
            before, after = before[:, :1], after[:, :1]
        n, top, left = crop_of(before, after)
        worst = [max(max(v.values()) for v in levels(y).values()) for y in (before, after)]
        cut = (slice(top, top + _CROP), slice(left, left + _CROP))
        crops = [shown(y[n])[cut] for y in (before, after)]
        low, high = min(float(c.min()) for c in crops), max(float(c.max()) for c in crops)
        colour = before.shape[1] == 3
        scale: dict[str, Any] = {} if colour else {"vmin": low, "vmax": high, "cmap": "gray"}
        line[0].imshow(shown(before[n]), cmap="gray", interpolation="nearest")
        line[0].add_patch(
            plt.Rectangle((left - 0.5, top - 0.5), _CROP, _CROP, fill=False, edgecolor="orange", linewidth=2)
        )
        line[0].set_ylabel(title, fontsize=11)
        for axis, crop, when, level in zip(line[1:3], crops, ("as it came", "repaired"), worst, strict=True):
            axis.imshow((crop - low) / (high - low) if colour else crop, interpolation="nearest", **scale)
            axis.set_title(f"{when}: {level:.1f} dB", fontsize=11)
        details = [detail(y[n])[cut] for y in (before, after)]
        most = float(details[0].abs().quantile(0.97))
        for axis, crop, when in zip(line[3:], details, ("as it came", "repaired"), strict=True):
            axis.imshow(crop, cmap="gray", vmin=-most, vmax=most, interpolation="nearest")
            axis.set_title(f"fine detail, {when}", fontsize=11)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(args.out, dpi=110)


def detail(picture: Tensor) -> Tensor:
    """(H, W): what is left of (C, H, W), in grey, without the mean of 5x5 pixels around."""
    grey = picture.mean(0, keepdim=True)
    return (grey - F.avg_pool2d(F.pad(grey, (2,) * 4, "reflect"), 5, 1))[0]


def shown(picture: Tensor) -> Tensor:
    """(H, W) or (H, W, 3) in [0, 1], of (C, H, W)."""
    low, high = picture.min(), picture.max()
    scaled = (picture - low) / (high - low)
    return scaled[0] if len(picture) == 1 else scaled.permute(1, 2, 0)


if __name__ == "__main__":
    main()
