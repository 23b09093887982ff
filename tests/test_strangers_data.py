"""Arrays, archives, pictures and settings from strangers: bombs, traps and nonsense are refused by an error
of the package's own, before much memory is taken.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pixelize.errors import ArgumentError, PixelizeWarning
from pixelize.recipes.data.files import Files
from pixelize.recipes.training.settings import read_yaml
from pixelize.sources.inputs import read_inputs


def header(shape, descr="<f4", version=1):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


class Evil:
    def __reduce__(self):
        return (open, ("ran", "w"))


def pickled_array():
    array = np.empty(1, dtype=object)
    array[0] = Evil()
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def zipped(contents, name="x.npy"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, contents)
    return file.getvalue()


ARRAYS = {
    "it is empty": b"",
    "it is a pickle": pickle.dumps([1, 2]),
    "it holds a pickle": pickled_array(),
    "it promises a terabyte": header((2**38,)) + bytes(64),
    "it promises a terabyte in a later version": header((2**38,), version=2) + bytes(64),
    "it promises more than any memory": header((2**40, 2**40)) + bytes(64),
    "its header is code": header("__import__('os').system('touch ran')") + bytes(64),
    "its header is cut": header((4,))[:20],
    "its data are cut": header((64,)) + bytes(10),
    "its shape is negative": header((-1,)) + bytes(64),
    "its type is unknown": header((4,), "<q9") + bytes(64),
    "its type is text": header((4,), "<U4") + bytes(64),
    "its type is objects": header((4,), "|O") + bytes(64),
    "it has no numbers": header((0,)),
}


@pytest.mark.parametrize("packed", [False, True], ids=["npy", "npz"])
@pytest.mark.parametrize("contents", ARRAYS.values(), ids=ARRAYS)
def test_arrays(tmp_path, monkeypatch, contents, packed):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("x.npz" if packed else "x.npy")
    path.write_bytes(zipped(contents) if packed else contents)
    tracemalloc.start()
    with pytest.raises(ArgumentError, match=path.name):
        read_inputs([str(path)])
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert not (tmp_path / "ran").exists()


def png(width, height, rows=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", size), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PICTURES = {
    "it is empty": b"",
    "it is text": b"hello",
    "it is cut short": png(8, 8, bytes(8 * 25))[:40],
    "it has more pixels than any camera": png(60000, 60000),
    "it has just more than are read": png(13000, 13000),
    "it has no pixels": png(0, 0),
    "its data are missing": png(64, 64),
    "it is a zip": zipped(b"x"),
}


@pytest.mark.parametrize("contents", PICTURES.values(), ids=PICTURES)
def test_pictures(tmp_path, contents):
    (tmp_path / "x.png").write_bytes(contents)
    tracemalloc.start()
    with pytest.raises(ArgumentError, match=r"x\.png"):
        read_inputs([str(tmp_path)])
    with pytest.raises(ArgumentError, match=r"x\.png"):
        Files(tmp_path).decode("x.png")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_what_cannot_be_read_among_pictures_is_passed_over_and_named(tmp_path):
    damaged = {"00.png": b"", "01.jpg": b"text", "02.png": png(12, 12, bytes(8)), "03.mp4": b"film"}
    for name, contents in damaged.items():
        (tmp_path / name).write_bytes(contents)
    for crop in (0, 4):
        with pytest.raises(ArgumentError, match=r"00\.png.*01\.jpg.*and 1 more"):
            read_inputs([str(tmp_path)], crop=crop)
    drawn = np.random.default_rng(0).integers(0, 256, (4, 12, 16, 3), np.uint8)
    for number, picture in enumerate(drawn):
        Image.fromarray(picture).save(tmp_path / f"{number}5.png")  # among the others, in their order
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted(tmp_path.iterdir())[:-1]:
            archive.write(file, file.name)
    for name in (tmp_path, tmp_path / "all.zip"):
        with pytest.warns(PixelizeWarning, match=r"passed over: .*00\.png.*01\.jpg.*and 1 more"):
            (batch,) = read_inputs([str(name)])
        assert torch.equal(batch, torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255)
        with pytest.warns(PixelizeWarning, match="passed over"):
            (first,) = read_inputs([str(name)], count=1)  # the first that can be read
        assert torch.equal(first, batch[:1])
        with pytest.warns(PixelizeWarning, match="passed over"):
            (crops,) = read_inputs([str(name)], crop=12, count=6)
        assert crops.shape == (6, 3, 12, 12)
        columns = torch.cat([batch, batch[:2]]).unfold(3, 12, 1).permute(0, 3, 1, 2, 4)
        assert (columns == crops[:, None]).flatten(2).all(2).any(1).all()


def test_damaged_arrays_in_a_folder_are_passed_over_and_named(tmp_path):
    for number, contents in enumerate((b"", header((64,)) + bytes(10), header((4,), "|O") + bytes(64))):
        (tmp_path / f"{number}.npy").write_bytes(contents)
    with pytest.raises(ArgumentError, match=r"0\.npy.*1\.npy.*2\.npy"):
        read_inputs([str(tmp_path)])
    volumes = np.arange(48, dtype=np.float32).reshape(2, 24)
    for number, volume in enumerate(volumes):
        np.save(tmp_path / f"1{number}.npy", volume)
    with pytest.warns(PixelizeWarning, match=r"passed over: .*0\.npy.*1\.npy.*2\.npy"):
        assert np.array_equal(torch.stack(read_inputs([str(tmp_path)])), volumes)
    with pytest.warns(PixelizeWarning, match="passed over"):
        (first,) = read_inputs([str(tmp_path)], count=1)
    assert np.array_equal(first, volumes[0])


def test_a_pipe_among_pictures_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    (batch,) = read_inputs([str(tmp_path)])
    assert batch.shape == (1, 3, 4, 4)
    assert Files(tmp_path).pictures() == ["b.png"]


def bomb():
    """A few kilobytes that unpack to more than any picture has."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.png", "w", force_zip64=True) as inside,
    ):
        for _ in range(600):
            inside.write(bytes(2**20))
    return file.getvalue()


def with_claim(size):
    """A zip whose directory says that a small file unpacks to ``size`` bytes."""
    raw = bytearray(zipped(b"a" * 100, "x.png"))
    place = raw.index(b"PK\x01\x02") + 24
    raw[place : place + 4] = struct.pack("<I", size)
    return bytes(raw)


def encrypted():
    raw = bytearray(zipped(b"a" * 100, "x.png"))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + offset] |= 1
    return bytes(raw)


ARCHIVES = {
    "it unpacks to more than any picture": bomb,
    "it says that it does": lambda: with_claim(2**31),
    "it unpacks to more than it says": lambda: with_claim(7),
    "it is encrypted": encrypted,
    "it is cut short": lambda: zipped(b"a" * 1000, "x.png")[:60],
}


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_archives(tmp_path, make):
    path = tmp_path / "pictures.zip"
    path.write_bytes(make())
    tracemalloc.start()
    with pytest.raises(ArgumentError, match=r"pictures\.zip"):
        read_inputs([str(path)])
    with pytest.raises(ArgumentError, match=r"pictures\.zip"):
        Files(path).decode("x.png")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_names_that_climb_out_of_an_archive_reach_nothing(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (255, 0, 0)).save(file, "png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a.zip").write_bytes(zipped(file.getvalue(), "../secret.png"))
    (batch,) = read_inputs([str(inside / "a.zip")])
    assert batch[0, 0].min() == 1  # the archive's own picture, and nothing is unpacked to disk
    assert [p.name for p in inside.iterdir()] == ["a.zip"]


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
SETTINGS = {
    "its aliases hold more than any memory": LAUGHS + "steps: *m\n",
    "it is deeper than Python's stack": "steps: " + "[" * 2000,
    "it is a list": "- steps\n",
    "it is no YAML": "steps: [\n",
    "a setting is a mapping": "steps: {a: 1}\n",
    "a setting is a list of mappings": "steps: [{a: 1}]\n",
    "a setting is unknown": "run: touch ran\n",
}


@pytest.mark.parametrize("text", SETTINGS.values(), ids=SETTINGS)
def test_settings(tmp_path, monkeypatch, text):
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    known = ["steps", *map(chr, range(97, 110))]
    tracemalloc.start()
    try:
        with pytest.raises(ArgumentError, match=r"x\.yaml"):
            read_yaml(str(tmp_path / "x.yaml"), known)
    finally:
        assert tracemalloc.get_traced_memory()[1] < 2**25
        tracemalloc.stop()
    assert not (tmp_path / "ran").exists()


def test_a_tag_in_settings_makes_nothing(tmp_path, monkeypatch):
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("steps: !!python/object/apply:os.system ['touch ran']\n")
    assert read_yaml("x.yaml", ["steps"]) == {"steps": "touch ran"}
    assert not (tmp_path / "ran").exists()
