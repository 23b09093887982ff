"""Pictures with masks in three sets: drawn scenes, folders and zips, CamVid's original layouts, VOC and
COCO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import torch
from PIL import Image

from pixelize.errors import ArgumentError
from pixelize.recipes.data.camvid import CAMVID_CLASSES, cambridge_pairs, is_cambridge
from pixelize.recipes.data.files import Files
from pixelize.recipes.data.pairs import IGNORE, Pair, Pairs
from pixelize.recipes.data.scenes import SCENE_CLASSES, draw_scene
from pixelize.recipes.data.voc_coco import coco_pairs, voc_pairs
from pixelize.recipes.training.order import generator


@dataclass(frozen=True)
class SegmentationData:
    """The three sets, and what the classes are called."""

    train: Pairs
    val: Pairs
    test: Pairs
    classes: tuple[str, ...]

    def check(self) -> None:
        """See :meth:`Pairs.check`. Raises ArgumentError also for an empty set."""
        for name in ("train", "val", "test"):
            pairs: Pairs = getattr(self, name)
            if not len(pairs):
                raise ArgumentError(f"the {name} set is empty; at least ten pairs are needed for a split")
            if pairs.pairs and pairs.pairs[0].name.startswith("scene "):
                continue
            pairs.check()


def load_segmentation(
    source: str, size: int, *, classes: int = 0, seed: int = 0, limit: int = 0, download: bool = False
) -> SegmentationData:
    """The data that ``--data`` names.

    Args:
        source: ``scenes`` (drawn), ``voc:ROOT``, ``coco:ROOT`` (torchvision's layouts), or a folder or zip:
            ``{train,val,test}/images`` and ``/masks``, CamVid as ``train`` and ``trainannot``, CamVid as it
            came from Cambridge, or just ``images`` and ``masks``, which are split 80/10/10.
        size: side of the square that pictures are resized to.
        classes: how many classes a folder's masks hold; 0 for CamVid's eleven, with 11 and 255 as void.
        limit: of each set the first so many; 0 for all.
        download: let torchvision fetch VOC.

    Raises ArgumentError if there is no such data.
    """
    kind, _, root = source.partition(":")
    if source == "scenes":
        sets = _scenes(size, seed)
        names: tuple[str, ...] = SCENE_CLASSES
        void: tuple[int, ...] = (IGNORE,)
    elif kind == "voc" and root:
        sets, names, void = voc_pairs(root, download)
    elif kind == "coco" and root:
        sets, names, void = coco_pairs(root)
    else:
        files = Files(source)
        camvid = classes == 0
        names = CAMVID_CLASSES if camvid else tuple(f"class {i}" for i in range(classes))
        void = (len(CAMVID_CLASSES), IGNORE) if camvid else (IGNORE,)
        sets = cambridge_pairs(files, _pair) if is_cambridge(files) else _folder(files, seed)
    made = {name: Pairs(pairs[: limit or None], size, names, seed, void) for name, pairs in sets.items()}
    return SegmentationData(**made, classes=names)


def _pair(files: Files, picture: str, mask: str, decode: Callable[[Image.Image], Any] | None = None) -> Pair:
    def load() -> tuple[Image.Image, Any]:
        labels = files.decode(mask)
        return files.decode(picture, "RGB"), labels if decode is None else decode(labels)

    return Pair(f"{files.root}/{mask}", load, lambda: (files.open(picture).size, files.open(mask).size))


def _scenes(size: int, seed: int) -> dict[str, list[Pair]]:
    def load(index: int) -> tuple[Image.Image, Any]:
        picture, mask = draw_scene(index, size, seed)
        return Image.fromarray(picture), mask

    starts = {"train": (0, 512), "val": (10_000, 64), "test": (20_000, 128)}
    return {
        name: [Pair(f"scene {first + i}", partial(load, first + i)) for i in range(count)]
        for name, (first, count) in starts.items()
    }


def _folder(files: Files, seed: int) -> dict[str, list[Pair]]:
    pictures = files.pictures()
    if not pictures:
        raise ArgumentError(f"{files.root}: no pictures in it")
    by_folder: dict[str, dict[str, str]] = {}
    for name in pictures:
        path = PurePosixPath(name)
        by_folder.setdefault(path.parent.as_posix(), {})[path.stem] = name
    by_part: dict[str, list[Pair]] = {}
    for folder, named in by_folder.items():
        path = PurePosixPath(folder)
        for masks, part in (
            (path.parent / "masks", path.parent.name if path.name == "images" else None),
            (path.parent / f"{path.name}annot", path.name),
        ):
            labels = by_folder.get(masks.as_posix())
            if labels is None or part is None:
                continue
            missing = sorted(named.keys() - labels.keys())
            if missing:
                raise ArgumentError(
                    f"{files.root}/{named[missing[0]]}: no mask {masks.as_posix()}/{missing[0]}.png for it "
                    f"({len(missing)} such pictures)"
                )
            by_part.setdefault(part, []).extend(
                _pair(files, named[stem], labels[stem]) for stem in sorted(named)
            )
    if {"train", "val"} <= by_part.keys():
        return {"train": by_part["train"], "val": by_part["val"], "test": by_part.get("test", by_part["val"])}
    pairs = [pair for part in by_part.values() for pair in part]
    if not pairs:
        raise ArgumentError(
            f"{files.root}: no images/ beside a masks/ in it; the layouts are those of "
            "`pixelize finetune segmentation --help`"
        )
    order = torch.randperm(len(pairs), generator=generator(seed, 4)).tolist()
    tenth = max(1, len(pairs) // 10)
    cut = {"val": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    return {name: [pairs[i] for i in sorted(chosen)] for name, chosen in cut.items()}
