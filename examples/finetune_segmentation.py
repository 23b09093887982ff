"""Fine-tune a trained segmentation model, converted, beside the same without conversion.

    python examples/finetune_segmentation.py                                  # drawn scenes, two CPU minutes
    python examples/finetune_segmentation.py --data camvid256.zip --size 256  # CamVid
    accelerate launch examples/finetune_segmentation.py ...                   # several GPUs or machines

One flat script to copy and change. `pixelize finetune segmentation` is the same with resuming, seeds, more
arms and a report.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.progress import track
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassJaccardIndex

import pixelize
from pixelize.recipes.data.pairs import IGNORE, Pairs
from pixelize.recipes.data.segmentation import load_segmentation
from pixelize.recipes.models.unet import UNet

parser = argparse.ArgumentParser(description="Fine-tune a segmentation model, converted and not.")
parser.add_argument("--data", default="scenes")
parser.add_argument("--size", type=int, default=48)
parser.add_argument("--steps", type=int, default=150, help="of training, and again of fine-tuning")
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--out", type=Path, default=Path("runs/example"))
args = parser.parse_args()

accelerator = Accelerator()
torch.manual_seed(0)
data = load_segmentation(args.data, args.size)
data.check()


def train(model: nn.Module, lr: float, steps: int, title: str) -> nn.Module:
    """Trains by AdamW with warm-up and cosine; new weights at a twentieth of the rate."""
    model.train()
    optimizer = torch.optim.AdamW(pixelize.param_groups(model, lr))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / 20) * 0.5 * (1 + math.cos(math.pi * t / steps))
    )
    order = torch.Generator().manual_seed(1)  # the same batches for every model
    loader = DataLoader(data.train, args.batch, shuffle=True, generator=order, drop_last=True)
    network, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
    batches = (batch for _ in iter(int, 1) for batch in loader)
    for _ in track(range(steps), title, disable=not accelerator.is_main_process):
        pictures, masks = next(batches)
        loss = F.cross_entropy(network(pictures), masks, ignore_index=IGNORE)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    return accelerator.unwrap_model(network)


@torch.no_grad()
def mean_iou(model: nn.Module, pairs: Pairs) -> float:
    """Mean IoU over the classes that occur."""
    model.eval()
    metric = MulticlassJaccardIndex(len(data.classes), ignore_index=IGNORE).to(accelerator.device)
    for i in range(accelerator.process_index, len(pairs), accelerator.num_processes):
        picture, mask = pairs[i]
        metric.update(
            model(picture[None].to(accelerator.device)).argmax(1), mask[None].to(accelerator.device)
        )
    return float(metric.compute())


trained = train(
    UNet(len(data.classes), "dcl-k4", width=8), args.lr, args.steps, "the model, as anybody trains it"
).cpu()

control = copy.deepcopy(trained)
converted = pixelize.convert(
    trained.eval(), "ipixeldcl", example_inputs=torch.zeros(1, 3, args.size, args.size)
)
print(pixelize.report(converted))

scores = {"as trained": mean_iou(copy.deepcopy(trained).to(accelerator.device), data.test)}
scores["fine-tuned"] = mean_iou(train(control, args.lr / 3, args.steps, "control"), data.test)
scores["converted, fine-tuned"] = mean_iou(train(converted, args.lr / 3, args.steps, "converted"), data.test)
if accelerator.is_main_process:
    print("\n".join(f"{name}: mean IoU {score:.3f}" for name, score in scores.items()))
    pixelize.save(converted.cpu(), args.out)
