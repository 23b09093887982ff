"""The recipes' data: layouts that are read, and bad input that is named before training starts."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate")

import torch
from PIL import Image

from pixelize.errors import ArgumentError
from pixelize.recipes.data.pairs import IGNORE
from pixelize.recipes.data.pictures import load_pictures
from pixelize.recipes.data.segmentation import load_segmentation

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def mask(path: Path, value: int = 1, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0]), value, np.uint8)).save(path)


def pairs(root: Path, count: int = 12, images: str = "images", masks: str = "masks") -> Path:
    for i in range(count):
        picture(root / images / f"{i}.jpg")
        mask(root / masks / f"{i}.png", i % 3)
    return root


def test_scenes_are_always_the_same_and_have_all_classes() -> None:
    one, again = load_segmentation("scenes", 48), load_segmentation("scenes", 48)
    x, y = one.train[3]
    assert (
        x.shape == (3, 48, 48) and y.shape == (48, 48) and x.dtype == torch.float32 and y.dtype == torch.int64
    )
    assert torch.equal(x, again.train[3][0]) and torch.equal(y, again.train[3][1])
    assert not torch.equal(x, one.train[4][0]) and not torch.equal(x, one.test[3][0])
    seen = torch.stack([one.train[i][1] for i in range(20)]).unique().tolist()
    assert seen == list(range(len(one.classes)))


def test_flips_follow_from_epoch_and_index_and_keep_pairs_together() -> None:
    data = load_segmentation("scenes", 32).train
    plain = data[0]
    epochs = [data[(e, 0)] for e in range(16)]
    flipped = [torch.equal(x, plain[0].flip(-1)) for x, _ in epochs]
    assert 0 < sum(flipped) < 16
    for (x, y), is_flipped in zip(epochs, flipped, strict=True):
        assert torch.equal(x, plain[0].flip(-1) if is_flipped else plain[0])
        assert torch.equal(y, plain[1].flip(-1) if is_flipped else plain[1])
    assert torch.equal(data[(3, 0)][0], load_segmentation("scenes", 32).train[(3, 0)][0])


def test_a_folder_without_a_split_is_split_and_a_zip_of_it_reads_the_same(tmp_path: Path) -> None:
    root = pairs(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in root.rglob("*.*"):
            archive.write(file, file.relative_to(root))
    folder, archived = (load_segmentation(str(p), 16, classes=3) for p in (root, tmp_path / "set.zip"))
    folder.check()
    assert [len(s) for s in (folder.train, folder.val, folder.test)] == [10, 1, 1]
    stems = [p.name.rsplit("/", 1)[1] for s in (folder.train, folder.val, folder.test) for p in s.pairs]
    assert sorted(stems) == sorted(f"{i}.png" for i in range(12))
    for i in range(10):
        assert torch.equal(folder.train[i][0], archived.train[i][0])


@pytest.mark.parametrize(("images", "masks"), [("{}/images", "{}/masks"), ("{}", "{}annot")])
def test_split_layouts(tmp_path: Path, images: str, masks: str) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        pairs(tmp_path / "camvid", count, images.format(part), masks.format(part))
    mask(tmp_path / "camvid" / masks.format("train") / "0.png", 11)
    data = load_segmentation(str(tmp_path / "camvid"), 16)
    data.check()
    assert [len(s) for s in (data.train, data.val, data.test)] == [4, 2, 3]
    assert len(data.classes) == 11 and (data.train[0][1] == IGNORE).all()


def test_camvid_as_it_came_from_cambridge(tmp_path: Path) -> None:
    (tmp_path / "label_colors.txt").write_text("128 128 128\t\tSky\n64 0 128\t\tCar\n0 0 0\t\tVoid\n")
    frames = {
        "0001TP_006690": "train",
        "0016E5_07959": "val",
        "0016E5_00390": "train",
        "Seq05VD_f00000": "test",
    }
    for i, stem in enumerate(frames):
        picture(tmp_path / "701_StillsRaw_full" / f"{stem}.png")
        colours = np.zeros((16, 20, 3), np.uint8)
        colours[:8] = (128, 128, 128) if i % 2 else (64, 0, 128)
        path = tmp_path / "LabeledApproved_full" / f"{stem}_L.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(colours).save(path)
    data = load_segmentation(str(tmp_path), 16)
    data.check()
    assert [len(s) for s in (data.train, data.val, data.test)] == [2, 1, 1]
    assert data.val[0][1].unique().tolist() == [data.classes.index("sky"), IGNORE]
    assert data.train[0][1].unique().tolist() == [data.classes.index("car"), IGNORE]


def test_bad_pairs_are_named_before_training(tmp_path: Path) -> None:
    def refused(name: str, match: str) -> None:
        with pytest.raises(ArgumentError, match=match):
            load_segmentation(str(tmp_path / name), 16, classes=3).check()

    mask(pairs(tmp_path / "size") / "masks" / "5.png", 1, (20, 15))
    refused("size", r"masks/5\.png: the mask is 20x15 and its picture 20x16")
    mask(pairs(tmp_path / "class") / "masks" / "6.png", 7)
    refused("class", r"masks/6\.png: class 7 in the mask, but there are 3 classes")
    (pairs(tmp_path / "torn") / "images" / "2.jpg").write_bytes(
        (tmp_path / "torn/images/2.jpg").read_bytes()[:200]
    )
    refused("torn", r"images/2\.jpg: not a readable picture")
    (pairs(tmp_path / "text") / "images" / "3.jpg").write_text("no picture")
    refused("text", r"images/3\.jpg: not a readable picture")
    picture(pairs(tmp_path / "colour") / "masks" / "4.png")
    refused("colour", r"masks/4\.png: a mask has one channel")
    (pairs(tmp_path / "lone") / "masks" / "1.png").unlink()
    refused("lone", r"images/1\.jpg: no mask")
    (tmp_path / "empty").mkdir()
    refused("empty", "no pictures")
    refused("nowhere", "no such folder")
    (tmp_path / "note.txt").write_text("text")
    refused("note.txt", "neither a folder nor a zip")
    pairs(tmp_path / "few", 2)
    refused("few", "the train set is empty")


def test_pictures_are_the_middle_square_and_bad_ones_are_named(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"{i}.png", (30, 16))
    train, held = load_pictures(str(tmp_path), 8, 1)
    assert (len(train), len(held)) == (18, 2)
    assert train[0].shape == (1, 8, 8) and -1 <= float(train[0].min()) < float(train[0].max()) <= 1
    again, _ = load_pictures(str(tmp_path), 8, 1)
    assert torch.equal(train[5], again[5])
    (tmp_path / "7.png").write_text("no picture")
    with pytest.raises(ArgumentError, match=r"7\.png: not a readable picture"):
        load_pictures(str(tmp_path), 8, 1)


def test_portraits_are_always_the_same() -> None:
    (one, _), (again, _) = load_pictures("portraits", 32, limit=20), load_pictures("portraits", 32, limit=20)
    assert one[1].shape == (3, 32, 32) and torch.equal(one[1], again[1]) and not torch.equal(one[1], one[2])


def test_voc_through_torchvision(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, count in (("train", 3), ("val", 2)):
        names = [f"{part}_{i}" for i in range(count)]
        (lists / f"{part}.txt").write_text("\n".join(names))
        for name in names:
            picture(root / "JPEGImages" / f"{name}.jpg")
            mask(root / "SegmentationClass" / f"{name}.png", 20 if part == "train" else 255)
    data = load_segmentation(f"voc:{tmp_path}", 16)
    data.check()
    assert [len(s) for s in (data.train, data.val, data.test)] == [3, 2, 2]
    assert len(data.classes) == 21 and (data.train[0][1] == 20).all() and (data.val[0][1] == IGNORE).all()
    (root / "JPEGImages" / "val_1.jpg").write_text("no picture")
    with pytest.raises(ArgumentError, match=r"val_1\.png: not a readable picture"):
        load_segmentation(f"voc:{tmp_path}", 16).check()
    with pytest.raises(ArgumentError, match="PASCAL VOC 2012 is not there"):
        load_segmentation(f"voc:{tmp_path / 'nowhere'}", 16)


def test_coco_through_torchvision(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for part in ("train", "val"):
        picture(tmp_path / f"{part}2017" / "1.jpg")
        box = [0.0, 0.0, 10.0, 0.0, 10.0, 16.0, 0.0, 16.0]
        thing = {
            "id": 1,
            "image_id": 1,
            "category_id": 7,
            "iscrowd": 0,
            "area": 160,
            "segmentation": [box],
            "bbox": [],
        }
        images = [{"id": 1, "file_name": "1.jpg", "width": 20, "height": 16}]
        categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        (annotations / f"instances_{part}2017.json").write_text(
            json.dumps({"images": images, "annotations": [thing], "categories": categories})
        )
    data = load_segmentation(f"coco:{tmp_path}", 16)
    data.check()
    assert data.classes == ("background", "cat", "dog")
    assert data.train[0][1].unique().tolist() == [0, 2] and 100 < int((data.train[0][1] == 2).sum()) < 160
    (tmp_path / "val2017" / "1.jpg").unlink()
    with pytest.raises(ArgumentError, match="picture 1: not a readable picture"):
        load_segmentation(f"coco:{tmp_path}", 16).check()
    with pytest.raises(ArgumentError, match="COCO 2017 is not there"):
        load_segmentation(f"coco:{tmp_path / 'nowhere'}", 16)


def test_celeba_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision").datasets
    root = tmp_path / "celeba"
    names = [f"{i:06d}.jpg" for i in range(1, 13)]
    for name in names:
        picture(root / "img_align_celeba" / name, (178, 218))
    tables = {"list_eval_partition": (0, "0"), "identity_CelebA": (0, "1"), "list_attr_celeba": (2, "1")}
    tables |= {"list_bbox_celeba": (2, "0 0 178 218"), "list_landmarks_align_celeba": (2, "1 1")}
    for table, (heads, row) in tables.items():
        columns = " ".join(f"column{i}" for i in range(len(row.split())))
        head = ["12", columns][:heads]
        (root / f"{table}.txt").write_text("\n".join([*head, *(f"{name} {row}" for name in names)]) + "\n")
    with pytest.raises(ArgumentError, match="CelebA is not there"):  # torchvision knows the true files' sums
        load_pictures(f"celeba:{tmp_path}", 16)
    monkeypatch.setattr(datasets.CelebA, "_check_integrity", lambda self: True)
    train, held = load_pictures(f"celeba:{tmp_path}", 16)
    assert (len(train), len(held)) == (11, 1) and train[0].shape == (3, 16, 16)
    (root / "img_align_celeba" / names[3]).write_text("no picture")
    with pytest.raises(ArgumentError, match=r"000004\.jpg: not a readable picture"):
        load_pictures(f"celeba:{tmp_path}", 16)
