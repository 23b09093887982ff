"""CamVid (Brostow et al. 2009): its eleven classes, and its layout as it came from Cambridge."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pixelize.errors import ArgumentError
from pixelize.recipes.data.files import Files, as_array

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)

_MEMBERS = {  # the 32 classes of the original in the eleven of Badrinarayanan et al. (SegNet)
    "sky": ("Sky",),
    "building": ("Archway", "Bridge", "Building", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "tree": ("Tree", "VegetationMisc"),
    "sign": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}


def is_cambridge(files: Files) -> bool:
    """Whether these are the original's colour labels: ``*_L.png`` and ``label_colors.txt``."""
    return any(n.endswith("label_colors.txt") for n in files.names) and any(
        n.endswith("_L.png") for n in files.names
    )


def split_of(stem: str) -> str:
    """The usual split (367/101/233) by a frame's name.

    >>> split_of("0001TP_006690"), split_of("0016E5_07959"), split_of("Seq05VD_f00000")
    ('train', 'val', 'test')
    """
    sequence, frame = stem.split("_", 1)
    number = int(re.sub(r"\D", "", frame))
    if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550):
        return "test"
    return "val" if sequence == "0016E5" and number % 2 else "train"


def cambridge_pairs(files: Files, pair: Callable[..., Any]) -> dict[str, list[Any]]:
    """The pairs of each set, with ``pair(files, picture, mask, decode)``; ``decode`` turns colours into class
    indices.
    """
    colours = next(n for n in files.names if n.endswith("label_colors.txt"))
    table = np.full(1 << 24, len(CAMVID_CLASSES), np.uint8)
    group = {member: i for i, name in enumerate(CAMVID_CLASSES) for member in _MEMBERS[name]}
    for line in files.read(colours).decode().splitlines():
        parts = line.split()
        if len(parts) == 4 and parts[3] in group:
            r, g, b = map(int, parts[:3])
            table[r << 16 | g << 8 | b] = group[parts[3]]
    pictures = {PurePosixPath(n).stem: n for n in files.pictures() if not n.endswith("_L.png")}
    pairs: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for mask in (n for n in files.names if n.endswith("_L.png")):
        stem = PurePosixPath(mask).stem.removesuffix("_L")
        if stem not in pictures:
            raise ArgumentError(f"{files.root}/{mask}: no picture {stem}.png for it")
        pairs[split_of(stem)].append(pair(files, pictures[stem], mask, partial(_indices, table)))
    return pairs


def _indices(table: np.ndarray, mask: Image.Image) -> np.ndarray:
    rgb = as_array(mask.convert("RGB")).astype(np.int64)
    return table[rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]]
