"""PASCAL VOC and COCO through torchvision, as pairs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from pixelize.errors import ArgumentError
from pixelize.recipes.data.pairs import IGNORE, Pair

Found = tuple[dict[str, list[Pair]], tuple[str, ...], tuple[int, ...]]
"""The pairs of each set, the classes' names, and the class indices that are void."""


def voc_pairs(root: str, download: bool) -> Found:
    """PASCAL VOC 2012 under ``root``; its validation set stands for the test set, too. ``download``: let
    torchvision fetch it.

    Raises ArgumentError if it is not there.
    """
    from torchvision.datasets import VOCSegmentation

    classes = (
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    )
    pairs = {}
    for part in ("train", "val"):
        try:
            voc = VOCSegmentation(root, "2012", part, download=download)
        except (RuntimeError, OSError) as error:
            raise ArgumentError(
                f"{root}: PASCAL VOC 2012 is not there ({error}); --download fetches it"
            ) from error
        pairs[part] = [Pair(str(voc.masks[i]), partial(voc.__getitem__, i)) for i in range(len(voc.images))]
    return {**pairs, "test": pairs["val"]}, classes, (IGNORE,)


def coco_pairs(root: str) -> Found:
    """COCO 2017 under ``root``, its objects painted into masks; its validation set stands for the test set,
    too.

    Raises ArgumentError if it is not there, or pycocotools is not.
    """
    from torchvision.datasets import CocoDetection

    pairs = {}
    classes: tuple[str, ...] = ()
    for part in ("train", "val"):
        try:
            coco = CocoDetection(f"{root}/{part}2017", f"{root}/annotations/instances_{part}2017.json")
        except ImportError as error:
            raise ArgumentError("COCO needs pycocotools: pip install pycocotools") from error
        except OSError as error:
            raise ArgumentError(f"{root}: COCO 2017 is not there ({error})") from error
        categories = sorted(coco.coco.getCatIds())
        classes = ("background", *(c["name"] for c in coco.coco.loadCats(categories)))
        index_of = {c: i + 1 for i, c in enumerate(categories)}
        pairs[part] = [
            Pair(f"{root}, picture {coco.ids[i]}", partial(_coco_pair, coco, index_of, i))
            for i in range(len(coco))
        ]
    return {**pairs, "test": pairs["val"]}, classes, (IGNORE,)


def _coco_pair(coco: Any, index_of: dict[int, int], i: int) -> tuple[Image.Image, np.ndarray]:
    picture, objects = coco[i]
    mask = np.zeros(picture.size[::-1], np.uint8)
    for thing in sorted(objects, key=lambda o: -o["area"]):  # small things lie over large ones
        region = coco.coco.annToMask(thing).astype(bool)
        mask[region] = IGNORE if thing.get("iscrowd") else index_of[thing["category_id"]]
    return picture.convert("RGB"), mask
