"""Pictures with masks: drawn scenes, folders and zips, CamVid's original layouts, PASCAL VOC and COCO through
torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pixelize.errors import ArgumentError
from pixelize.recipes.data.camvid import CAMVID_CLASSES, cambridge_pairs, is_cambridge
from pixelize.recipes.data.files import Files, as_array
from pixelize.recipes.data.scenes import SCENE_CLASSES, draw_scene
from pixelize.recipes.training.order import Sample, generator

IGNORE = 255
"""The class index of pixels that count neither in the loss nor in the metrics."""

_CHECKED_MASKS = 2_000  # decoded before training; the headers of all are read
_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Pair:
    """One picture and its mask: ``load() -> (PIL RGB picture, PIL mask or (H, W) array)``, ``sizes() -> their
    (width, height)``.
    """

    name: str
    load: Callable[[], tuple[Image.Image, Any]]
    sizes: Callable[[], tuple[tuple[int, int], tuple[int, int]]] | None = None

    def read(self) -> tuple[Image.Image, Any]:
        """What ``load`` gives. Raises ArgumentError, naming the pair, if it cannot be read."""
        try:
            return self.load()
        except ArgumentError:
            raise
        except (OSError, SyntaxError, ValueError) as error:  # torchvision's sets let PIL's errors through
            raise ArgumentError(f"{self.name}: not a readable picture and mask ({error})") from error


@dataclass
class Pairs(Dataset):
    """Pairs as tensors: float picture ``(3, size, size)`` in [0, 1] and int64 mask ``(size, size)``.

    Asked for ``(epoch, index)`` it may flip the picture, by a coin that depends on (seed, epoch, index)
    alone; for a plain ``index`` never. ``void``: class indices that become :data:`IGNORE`.
    """

    pairs: list[Pair]
    size: int
    classes: tuple[str, ...]
    seed: int = 0
    void: tuple[int, ...] = (IGNORE,)
    cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, sample: Sample | int) -> tuple[Tensor, Tensor]:
        epoch, index = sample if isinstance(sample, tuple) else (None, sample)
        if index in self.cached:
            picture, mask = self.cached[index]
        else:
            picture, mask = self.resized(index)
            if len(self.pairs) * self.size**2 * 4 < _CACHE_BYTES:
                self.cached[index] = picture, mask
        if epoch is not None and torch.rand((), generator=generator(self.seed, 3, epoch, index)) < 0.5:
            picture, mask = picture.flip(-1), mask.flip(-1)
        return picture.float() / 255, mask.long()

    def resized(self, index: int) -> tuple[Tensor, Tensor]:
        """uint8 picture and mask at the set's size, the classes checked. Raises ArgumentError, naming the
        mask.
        """
        pair = self.pairs[index]
        picture, mask = pair.read()
        labels = self.labels(pair.name, mask, picture.size)
        picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        mask = Image.fromarray(labels).resize((self.size, self.size), Image.Resampling.NEAREST)
        return torch.from_numpy(as_array(picture)).permute(2, 0, 1).contiguous(), torch.from_numpy(
            as_array(mask)
        )

    def labels(self, name: str, mask: Any, size: tuple[int, int]) -> np.ndarray:
        """The mask as uint8 class indices, void ones as IGNORE. Raises ArgumentError for a wrong size, form
        or class.
        """
        array = as_array(mask) if isinstance(mask, Image.Image) else mask
        if array.ndim != 2:
            raise ArgumentError(
                f"{name}: a mask has one channel of class indices; this one has the shape {array.shape}"
            )
        if array.shape != size[::-1]:
            raise ArgumentError(
                f"{name}: the mask is {array.shape[1]}x{array.shape[0]} and its picture {size[0]}x{size[1]}"
            )
        array = np.where(np.isin(array, self.void), IGNORE, array)
        beyond = np.unique(array[(array >= len(self.classes)) & (array != IGNORE)])
        if beyond.size:
            raise ArgumentError(
                f"{name}: class {int(beyond[-1])} in the mask, but there are {len(self.classes)} classes, "
                f"0 to {len(self.classes) - 1} (and {', '.join(map(str, self.void))} for void); set --classes"
            )
        return array.astype(np.uint8)

    def check(self) -> None:
        """Reads every header and decodes the first :data:`_CHECKED_MASKS` pairs. Raises ArgumentError naming
        the first bad file.
        """
        for index, pair in enumerate(self.pairs):
            if index < _CHECKED_MASKS:
                picture, mask = pair.read()
                self.labels(pair.name, mask, picture.size)
            elif pair.sizes is not None:
                picture_size, mask_size = pair.sizes()
                if picture_size != mask_size:
                    raise ArgumentError(
                        f"{pair.name}: the mask is {mask_size} and its picture {picture_size}"
                    )


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
        sets, names, void = _voc(root, download)
    elif kind == "coco" and root:
        sets, names, void = _coco(root)
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
    found: dict[str, list[Pair]] = {}
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
            found.setdefault(part, []).extend(
                _pair(files, named[stem], labels[stem]) for stem in sorted(named)
            )
    if {"train", "val"} <= found.keys():
        return {"train": found["train"], "val": found["val"], "test": found.get("test", found["val"])}
    pairs = [pair for part in found.values() for pair in part]
    if not pairs:
        raise ArgumentError(
            f"{files.root}: no images/ beside a masks/ in it; the layouts are those of "
            "`pixelize finetune segmentation --help`"
        )
    order = torch.randperm(len(pairs), generator=generator(seed, 4)).tolist()
    tenth = max(1, len(pairs) // 10)
    cut = {"val": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    return {name: [pairs[i] for i in sorted(chosen)] for name, chosen in cut.items()}


def _voc(root: str, download: bool) -> tuple[dict[str, list[Pair]], tuple[str, ...], tuple[int, ...]]:
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
    found = {}
    for part in ("train", "val"):
        try:
            voc = VOCSegmentation(root, "2012", part, download=download)
        except (RuntimeError, OSError) as error:
            raise ArgumentError(
                f"{root}: PASCAL VOC 2012 is not there ({error}); --download fetches it"
            ) from error
        found[part] = [Pair(str(voc.masks[i]), partial(voc.__getitem__, i)) for i in range(len(voc.images))]
    return {**found, "test": found["val"]}, classes, (IGNORE,)


def _coco(root: str) -> tuple[dict[str, list[Pair]], tuple[str, ...], tuple[int, ...]]:
    from torchvision.datasets import CocoDetection

    found = {}
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
        found[part] = [
            Pair(f"{root}, picture {coco.ids[i]}", partial(_coco_pair, coco, index_of, i))
            for i in range(len(coco))
        ]
    return {**found, "test": found["val"]}, classes, (IGNORE,)


def _coco_pair(coco: Any, index_of: dict[int, int], i: int) -> tuple[Image.Image, np.ndarray]:
    picture, objects = coco[i]
    mask = np.zeros(picture.size[::-1], np.uint8)
    for thing in sorted(objects, key=lambda o: -o["area"]):  # small things lie over large ones
        region = coco.coco.annToMask(thing).astype(bool)
        mask[region] = IGNORE if thing.get("iscrowd") else index_of[thing["category_id"]]
    return picture.convert("RGB"), mask
