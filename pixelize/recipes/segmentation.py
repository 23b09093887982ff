"""Recipe: semantic segmentation. The paper's U-Net from scratch with different up-samplers, or a trained
model, converted or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import minimum_size
from pixelize.recipes.boundary_iou import BoundaryIoU
from pixelize.recipes.data.pairs import IGNORE, Pairs
from pixelize.recipes.data.segmentation import SegmentationData, load_segmentation
from pixelize.recipes.models.arms import ANNEALED, arm_model, layer_and_width, recipe_arms
from pixelize.recipes.models.unet import UNet
from pixelize.recipes.recipe_settings import SegmentationSettings
from pixelize.recipes.sampled import pattern
from pixelize.recipes.training.compare import compare, train_base
from pixelize.recipes.training.loop import Trial
from pixelize.recipes.training.processes import adam, descend, prepare, share, start
from pixelize.recipes.training.run_state import Metrics
from pixelize.recipes.weights import load_weights
from pixelize.sources.models import build_model

Loss = Callable[[Tensor, Tensor], Tensor]

PATTERN_PICTURES = 64
"""Test pictures whose logits are measured for a pattern."""


def run(s: SegmentationSettings) -> dict[str, Any]:
    """Trains every arm with every seed and reports. Returns what ``results.json`` holds.

    Raises ArgumentError for settings or data that mean nothing, before training.
    """
    accelerator = start(s)
    scratch = s.model == "unet" and not s.weights and not s.base_steps
    arms = recipe_arms(s.arms, scratch)
    data = load_segmentation(s.data, s.size, classes=s.classes, limit=s.limit, download=s.download)
    data.check()
    inputs = torch.stack([data.train[i][0] for i in range(min(64, len(data.train)))]).split(4)
    check_model(s, len(data.classes), inputs[0])

    @cache
    def base(seed: int) -> nn.Module:
        def trial(model: nn.Module, own: SegmentationSettings) -> Trial:
            return make_trial(model, own, data, accelerator, True)

        return train_base(first_model(s, len(data.classes)), s.base_steps, trial, s, seed, accelerator)

    def build(arm: str) -> UNet:
        return UNet(len(data.classes), *layer_and_width(arm, s.width))

    def make(arm: str, seed: int) -> tuple[nn.Module, Trial]:
        model = arm_model(arm, build, None if scratch else base(seed), inputs)
        return model, make_trial(model, s, data, accelerator, scratch, arm == ANNEALED)

    return compare(s, accelerator, f"segmentation: {s.model} on {s.data}", arms, make)


def first_model(s: SegmentationSettings, classes: int) -> nn.Module:
    """The model by its name, with ``--weights``."""
    if s.model == "unet":
        model: nn.Module = UNet(classes, "dcl-k4", s.width)
    else:
        model = build_model(with_classes(s.model, classes))
    return load_weights(model, s.weights) if s.weights else model


@torch.no_grad()
def check_model(s: SegmentationSettings, classes: int, pictures: Tensor) -> None:
    """Raises ArgumentError if the model cannot be built, or does not take pictures of this size or give each
    pixel ``classes`` values.
    """
    try:
        shape = tuple(first_model(s, classes).eval()(pictures).shape)
    except RuntimeError as error:
        raise ArgumentError(
            f"--model {s.model} does not take pictures of --size {s.size}: {error}"
        ) from error
    wanted = (len(pictures), classes, s.size, s.size)
    if shape != wanted:
        raise ArgumentError(f"--model {s.model} gives {shape} where {wanted} is needed (N, classes, H, W)")


def with_classes(name: str, classes: int) -> str:
    """A model's name with the number of classes among its options, unless it has it."""
    if "classes=" in name or not name.startswith("smp:"):
        return name
    return f"{name}{'&' if '?' in name else '?'}classes={classes}"


def make_trial(
    model: nn.Module,
    s: SegmentationSettings,
    data: SegmentationData,
    accelerator: Accelerator,
    scratch: bool,
    anneal: bool = False,
) -> Trial:
    """The trial of one model: cross-entropy (or another loss); mean IoU, mean boundary IoU and pixel accuracy
    without void pixels; at the end also the pattern in the logits.
    """
    loss_of = make_loss(s.loss, accelerator)
    network = prepare(accelerator, s, model)
    optimizer = adam(accelerator, s, model, scratch=scratch)

    def update(batch: tuple[Tensor, Tensor], number: int) -> dict[str, Tensor]:
        pictures, masks = batch
        loss = loss_of(network(pictures), masks)
        descend(accelerator, s, loss, network, optimizer)
        return {"loss": loss}

    return Trial(
        {"model": network},
        {"adam": optimizer},
        data.train,
        update,
        lambda m: measure(m, data.val, s.eval_batch, accelerator, "val "),
        lambda m: {
            **measure(m, data.test, s.eval_batch, accelerator),
            **logits_pattern(m, data.test, s.eval_batch, accelerator),
        },
        "val mIoU",
        anneal,
    )


def make_loss(name: str, accelerator: Accelerator) -> Loss:
    """The loss of logits ``(N, classes, H, W)`` and masks ``(N, H, W)``, void pixels left out.

    ``ce`` is the mean over all pixels of all processes, so that their number does not matter; smp's losses
    are means of the processes' own.

    Raises ArgumentError for an unknown name or a missing smp.
    """

    def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
        total = F.cross_entropy(logits.float(), masks, ignore_index=IGNORE, reduction="sum")
        pixels = accelerator.reduce((masks != IGNORE).sum(), "sum")
        return total * accelerator.num_processes / pixels.clamp(min=1)

    if name == "ce":
        return cross_entropy
    try:
        from segmentation_models_pytorch import losses
    except ImportError as error:
        raise ArgumentError(f"--loss {name}: {error}; pip install torch-pixelize[smp]") from error
    others = {"dice": losses.DiceLoss, "focal": losses.FocalLoss, "lovasz": losses.LovaszLoss}
    parts = name.split("+")
    wrong = [p for p in parts if p != "ce" and p not in others]
    if wrong:
        raise ArgumentError(
            f"--loss {name}: no loss {wrong[0]!r}; there are ce, {', '.join(others)}, and sums of them"
        )
    terms = [cross_entropy if p == "ce" else others[p]("multiclass", ignore_index=IGNORE) for p in parts]
    return lambda logits, masks: torch.stack([term(logits, masks) for term in terms]).sum()


def measure(
    model: nn.Module, pairs: Pairs, batch: int, accelerator: Accelerator, prefix: str = ""
) -> Metrics:
    """Mean IoU and mean boundary IoU over the classes that occur and pixel accuracy, without void pixels,
    over all processes' shares together.
    """
    options: dict[str, Any] = {"num_classes": len(pairs.classes), "ignore_index": IGNORE}
    metrics = MetricCollection(
        {
            "mIoU": MulticlassJaccardIndex(**options),
            "boundary IoU": BoundaryIoU(len(pairs.classes), IGNORE),
            "accuracy": MulticlassAccuracy(average="micro", **options),
        }
    ).to(accelerator.device)
    for logits, masks in logits_of(model, pairs, share(accelerator, len(pairs)), batch, accelerator):
        metrics.update(logits.argmax(1), masks)
    return {prefix + name: float(value) for name, value in metrics.compute().items()}


def logits_pattern(model: nn.Module, pairs: Pairs, batch: int, accelerator: Accelerator) -> Metrics:
    """The checkerboard of the logits of the first :data:`PATTERN_PICTURES` pictures, in dB (every process
    measures the same); nothing where pictures are too small for it.
    """
    if pairs.size < min(minimum_size((2, 2))):
        return {}
    first = range(min(PATTERN_PICTURES, len(pairs)))
    outputs = logits_of(model, pairs, first, batch, accelerator)
    return pattern(torch.cat([logits.cpu() for logits, _ in outputs]), "logits ")


def logits_of(
    model: nn.Module, pairs: Pairs, which: range, batch: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``(n, classes, H, W)`` in float32 and masks ``(n, H, W)`` of some pairs, ``batch`` at a time."""
    for i in range(0, len(which), batch):
        pictures, masks = zip(*(pairs[j] for j in which[i : i + batch]), strict=True)
        with accelerator.autocast():
            logits = model(torch.stack(pictures).to(accelerator.device))
        yield logits.float(), torch.stack(masks).to(accelerator.device)
