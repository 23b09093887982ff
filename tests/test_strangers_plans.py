"""Damaged and hostile saved folders: each is refused with a LoadError that names it, before anything large is
made, and the model is as it was.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

import pixelize
from pixelize.conversion.saved_plan import parse, to_text
from pixelize.errors import LoadError


class Net(nn.Module):
    """A site of every kind: transposed, resized, shuffled, bare resize, function; one shared by two names."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 4, 2, 1)
        self.same = self.up
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.shuffled = nn.Conv2d(8, 8, 3, padding=1)
        self.bare = nn.Upsample(scale_factor=2)
        self.w = nn.Parameter(torch.randn(2, 3, 4, 4))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(F.interpolate(self.up(x), scale_factor=2))
        x = self.bare(F.pixel_shuffle(self.shuffled(x), 2))
        return self.norm(F.conv_transpose2d(x, self.w, None, 2, 1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    kinds = ("conv_transpose", "resize_conv", "pixel_shuffle", "resize")
    model = pixelize.convert(Net().eval(), example_inputs=torch.randn(1, 3, 4, 4), sites=kinds)
    pixelize.set_input_gate(model, 0.5)
    folder = pixelize.save(model, tmp_path_factory.mktemp("saved") / "net", source="nets:Net")
    names = {s["name"]: s["kind"] for s in json.loads((folder / "pixelize.json").read_text())["sites"]}
    assert names == {
        "up": "conv_transpose", "conv": "resize_conv", "shuffled": "pixel_shuffle", "bare": "resize",
        "w_conv_transpose": "conv_transpose",
    }  # fmt: skip
    return folder


def state(model):
    modules = [(name, id(m), type(m), list(m.__dict__)) for name, m in model.named_modules()]
    return modules, {k: (id(v), v.clone()) for k, v in model.named_parameters()}, model.state_dict()


def refused(folder, model=None, match=None):
    """Loading raises a LoadError that names the folder, within a second, and leaves the model as it was."""
    torch.manual_seed(1)
    model = Net() if model is None else model
    modules, parameters, _ = state(model)
    values = {k: v.clone() for k, v in model.state_dict().items()}
    begun = time.perf_counter()
    with pytest.raises(LoadError, match=match) as caught:
        pixelize.load(folder, model)
    assert time.perf_counter() - begun < 5
    assert Path(folder).name in str(caught.value)
    assert len(str(caught.value)) < 1500
    after = state(model)
    assert after[0] == modules
    assert {k: i for k, (i, _) in after[1].items()} == {k: i for k, (i, _) in parameters.items()}
    assert values.keys() == after[2].keys() and all(torch.equal(v, after[2][k]) for k, v in values.items())


def test_the_folder_itself_loads(saved):
    model = pixelize.load(saved, Net().eval())
    assert len(pixelize.report(model).converted) == 5


UP, CONV, SHUFFLED, BARE, CALL = "up", "conv", "shuffled", "bare", "w_conv_transpose"
HUGE, DEEP = 2**31 - 1, json.loads("[" * 500 + "]" * 500)
# what the plan says (one sentence), where in it, and the value that is put there
NONSENSE = [
    ("the sites are no list", ("sites",), {}),
    ("the sites are a number", ("sites",), 5),
    ("there are no sites, but weights of some", ("sites",), []),
    ("a site is a string", ("sites", 0), "up"),
    ("a site is nothing", ("sites", 0), None),
    ("the model's name is a list", ("model",), ["Net"]),
    ("the model's name is a novel", ("model",), "x" * 5000),
    ("the aliases are a list", ("aliases",), []),
    ("an alias stands for a number", ("aliases",), {"a": 1}),
    ("an alias stands for a tensor that is not there", ("aliases",), {"norm.weight": "nowhere"}),
    ("an alias has the name of a tensor that is there", ("aliases",), {"norm.weight": "norm.bias"}),
    ("an alias is a tensor that the model does not have", ("aliases",), {"more": "norm.bias"}),
    ("an alias stands for itself", ("aliases",), {"x": "x"}),
    ("the checksum of the weights is a number", ("sha256",), 0),
    ("the checksum of the weights is empty", ("sha256",), ""),
    ("the checksum of the weights is a path", ("sha256",), "../" * 21 + "a"),
    ("the checksum of the weights is another", ("sha256",), "0" * 64),
    ("the source is a number", ("source",), 1),
    ("the source is a list", ("source",), ["demo"]),
    ("the format is missing in all but name", ("format",), None),
    ("the format is true, which Python takes for 1", ("format",), True),
    ("the format is a later one", ("format",), 3),
    ("the format is a list", ("format",), [2]),
    ("there is more in the plan than is known", ("run",), "touch ran"),
    ("a site has more than is known", (UP, "code"), "print()"),
    ("a site's name is a number", (UP, "name"), 7),
    ("a site's name is nothing", (UP, "name"), None),
    ("a site's name is that of no module", (UP, "name"), "down"),
    ("a site's name is an attribute that is no module", (UP, "name"), "forward"),
    ("a site's name is a module's inside", (UP, "name"), "__class__"),
    ("a site's name is that of a parameter", (UP, "name"), "norm.weight"),
    ("a site's name has dots only", (UP, "name"), "..."),
    ("a site's name climbs out", (UP, "name"), "../up"),
    ("a site's name is that of a norm", (UP, "name"), "norm"),
    ("a site's name is that of another site", (UP, "name"), "conv"),
    ("a site's name is the same module's other name, twice", (CONV, "name"), "same"),
    ("a site is the whole model", (UP, "name"), ""),
    ("a site's name has no end", (UP, "name"), "up." * 20000),
    ("a site's names are a string", (UP, "names"), "up"),
    ("a site's names are numbers", (UP, "names"), [1, 2]),
    ("a site's names are another module's", (UP, "names"), ["up", "conv"]),
    ("a site's names are not there", (UP, "names"), ["up", "nowhere"]),
    ("a site's kind is unknown", (UP, "kind"), "os.system"),
    ("a site's kind is nothing", (UP, "kind"), None),
    ("a site's kind is a list", (UP, "kind"), ["resize"]),
    ("a transposed convolution is a resize", (UP, "kind"), "resize"),
    ("a transposed convolution is a shuffle", (UP, "kind"), "pixel_shuffle"),
    ("a transposed convolution is a resize-convolution", (UP, "kind"), "resize_conv"),
    ("a resize-convolution is transposed", (CONV, "kind"), "conv_transpose"),
    ("a resize-convolution is a shuffle", (CONV, "kind"), "pixel_shuffle"),
    ("a shuffle is a resize-convolution", (SHUFFLED, "kind"), "resize_conv"),
    ("a bare resize is a resize-convolution", (BARE, "kind"), "resize_conv"),
    ("a site's type is a number", (UP, "type"), 1),
    ("a site's type is another class", (UP, "type"), "Linear"),
    ("a site's type is code", (CONV, "type"), "os.system"),
    ("a function's type is a norm", (CALL, "type"), "batch_norm"),
    ("a site's geometry is nothing", (UP, "geometry"), None),
    ("a site's geometry is a list", (UP, "geometry"), [3, 4]),
    ("a geometry has one number more", (UP, "geometry", "more"), 1),
    ("channels are none", (UP, "geometry", "in_channels"), 0),
    ("channels are negative", (UP, "geometry", "in_channels"), -3),
    ("channels are a fraction", (UP, "geometry", "in_channels"), 3.0),
    ("channels are a string", (UP, "geometry", "in_channels"), "3"),
    ("channels are true", (UP, "geometry", "in_channels"), True),
    ("channels are others than the module's", (UP, "geometry", "in_channels"), 6),
    ("channels out are others than the module's", (UP, "geometry", "out_channels"), 2),
    ("channels are as many as an int holds", (UP, "geometry", "in_channels"), HUGE),
    ("channels are more than an int holds", (UP, "geometry", "in_channels"), 10**30),
    ("a resize-convolution's channels are others", (CONV, "geometry", "in_channels"), 3),
    ("a resize-convolution's channels out are huge", (CONV, "geometry", "out_channels"), HUGE),
    ("a shuffle's channels are others", (SHUFFLED, "geometry", "out_channels"), 8),
    ("a bare resize's channels are others than it was saved with", (BARE, "geometry", "in_channels"), 3),
    ("a bare resize's channels are huge", (BARE, "geometry", "in_channels"), HUGE),
    ("a function's channels are others", (CALL, "geometry", "in_channels"), 4),
    ("a kernel is a number", (UP, "geometry", "kernel_size"), 4),
    ("a kernel has three sides", (UP, "geometry", "kernel_size"), [4, 4, 4]),
    ("a kernel has one side", (UP, "geometry", "kernel_size"), [4]),
    ("a kernel has no taps", (UP, "geometry", "kernel_size"), [0, 4]),
    ("a kernel is not square as the module's is", (UP, "geometry", "kernel_size"), [4, 6]),
    ("a kernel is larger than any picture", (UP, "geometry", "kernel_size"), [HUGE, HUGE]),
    ("a resize-convolution's kernel is another", (CONV, "geometry", "kernel_size"), [6, 6]),
    ("a resize-convolution's kernel is huge", (CONV, "geometry", "kernel_size"), [HUGE, HUGE]),
    ("a shuffle's kernel is another", (SHUFFLED, "geometry", "kernel_size"), [4, 4]),
    ("a stride is zero", (UP, "geometry", "stride"), [0, 0]),
    ("a stride is negative", (UP, "geometry", "stride"), [-2, 2]),
    ("a stride is text", (UP, "geometry", "stride"), ["2", "2"]),
    ("a stride is another than the module's", (UP, "geometry", "stride"), [2, 3]),
    ("a stride is huge", (UP, "geometry", "stride"), [HUGE, HUGE]),
    ("a resize-convolution's stride is another", (CONV, "geometry", "stride"), [3, 3]),
    ("a resize-convolution's stride is huge", (CONV, "geometry", "stride"), [10**6, 10**6]),
    ("a shuffle's stride is another", (SHUFFLED, "geometry", "stride"), [4, 4]),
    ("a bare resize's stride is another", (BARE, "geometry", "stride"), [4, 4]),
    ("a padding is negative", (UP, "geometry", "padding"), [-1, 1]),
    ("a padding is a word", (UP, "geometry", "padding"), "same"),
    ("a padding is another than the module's", (UP, "geometry", "padding"), [0, 0]),
    ("a resize-convolution's padding is another", (CONV, "geometry", "padding"), [0, 0]),
    ("a shuffle's padding is another", (SHUFFLED, "geometry", "padding"), [0, 0]),
    ("a bare resize has a padding", (BARE, "geometry", "padding"), [1, 1]),
    ("an output padding is another than the module's", (UP, "geometry", "output_padding"), [1, 1]),
    ("an output padding is huge", (CONV, "geometry", "output_padding"), [HUGE, HUGE]),
    ("groups are none", (UP, "geometry", "groups"), 0),
    ("groups are others than the module's", (CONV, "geometry", "groups"), 2),
    ("a dilation is none", (UP, "geometry", "dilation"), [0, 0]),
    ("a dilation is another", (SHUFFLED, "geometry", "dilation"), [2, 2]),
    ("whether there is a bias is a number", (UP, "geometry", "bias"), 1),
    ("there is no bias where the module has one", (UP, "geometry", "bias"), False),
    ("there is no bias where the convolution has one", (CONV, "geometry", "bias"), False),
    ("there is a bias where the function has none", (CALL, "geometry", "bias"), True),
    ("options are a list", (UP, "options"), []),
    ("options are nothing", (UP, "options"), None),
    ("a transposed convolution has options", (UP, "options"), {"factor": [2, 2]}),
    ("a resize-convolution has none", (CONV, "options"), {}),
    ("an option is unknown", (CONV, "options", "hook"), "os.system"),
    ("an option is an object", (CONV, "options", "factor"), {"a": 1}),
    ("an option is deeper than any", (CONV, "options", "factor"), DEEP),
    ("a factor is a number", (CONV, "options", "factor"), 2),
    ("a factor is another", (CONV, "options", "factor"), [3, 3]),
    ("a factor is zero", (CONV, "options", "factor"), [0, 0]),
    ("a factor is huge", (CONV, "options", "factor"), [10**6, 10**6]),
    ("a factor has one side", (CONV, "options", "factor"), [2]),
    ("a factor is a fraction", (CONV, "options", "factor"), [2.0, 2.0]),
    ("ranges are empty", (CONV, "options", "ranges"), []),
    ("ranges are numbers", (CONV, "options", "ranges"), [0, 4]),
    ("a range has one end", (CONV, "options", "ranges"), [[0]]),
    ("a range ends before it begins", (CONV, "options", "ranges"), [[4, 0]]),
    ("a range is empty", (CONV, "options", "ranges"), [[2, 2]]),
    ("ranges overlap", (CONV, "options", "ranges"), [[0, 3], [2, 4]]),
    ("a range goes beyond the channels", (CONV, "options", "ranges"), [[0, 5]]),
    ("a range leaves channels out", (CONV, "options", "ranges"), [[0, 3]]),
    ("a margin is another", (CONV, "options", "margin"), [1, 1]),
    ("a margin is huge", (CONV, "options", "margin"), [HUGE, HUGE]),
    ("a margin is a number", (CONV, "options", "margin"), 0),
    ("what is around is unknown", (CONV, "options", "around"), "circular"),
    ("what is around is a number", (CONV, "options", "around"), 0),
    ("the resize was bicubic", (CONV, "options", "mode"), "bicubic"),
    ("the resize was bilinear, with nearest's kernel", (CONV, "options", "mode"), "bilinear"),
    ("a shuffle's factor is another", (SHUFFLED, "options", "factor"), 4),
    ("a shuffle's factor is one", (SHUFFLED, "options", "factor"), 1),
    ("a shuffle's factor is huge", (SHUFFLED, "options", "factor"), HUGE),
    ("a shuffle's factor is true", (SHUFFLED, "options", "factor"), True),
    ("a shuffle's order leaves channels out", (SHUFFLED, "options", "order"), [0, 1]),
    ("a shuffle's order takes one channel always", (SHUFFLED, "options", "order"), [0] * 8),
    ("a shuffle's order goes beyond the channels", (SHUFFLED, "options", "order"), [9, *range(1, 8)]),
    ("a shuffle's order is of lists", (SHUFFLED, "options", "order"), [[i] for i in range(8)]),
    ("a shuffle has a range as well", (SHUFFLED, "options", "ranges"), [[0, 8]]),
    ("a bare resize's type is no type", (BARE, "options", "dtype"), "load"),
    ("a bare resize's type is private", (BARE, "options", "dtype"), "__dict__"),
    ("a bare resize's mode is unknown", (BARE, "options", "mode"), "bicubic"),
    ("a bare resize's factor is huge", (BARE, "options", "factor"), [10**6, 10**6]),
    ("a function's owner is no module", (CALL, "options", "owner"), "nowhere"),
    ("a function's owner is a number", (CALL, "options", "owner"), 0),
    ("a function's owner has no such call", (CALL, "options", "owner"), "norm"),
    ("a function's weight is no parameter", (CALL, "options", "weight"), "v"),
    ("a function's weight is a list", (CALL, "options", "weight"), [1]),
    ("a function's weight is another parameter", (CALL, "options", "weight"), "norm.weight"),
    ("a function is no function", (CALL, "options"), {}),
    ("a layer is unknown", (UP, "layer"), "eval"),
    ("a layer is nothing", (UP, "layer"), None),
    ("a layer is a list", (UP, "layer"), ["ipixeldcl"]),
    ("a layer is plain where its weights are not", (UP, "layer"), "dcl"),
    ("a layer is a PixelDCL where its weights are not", (UP, "layer"), "pixeldcl"),
    ("a design is nothing", (UP, "design"), None),
    ("a design has more than is known", (UP, "design", "more"), 1),
    ("dependency kernels have no taps", (UP, "design", "kernel_size"), [0, 0]),
    ("dependency kernels have three sides", (UP, "design", "kernel_size"), [3, 3, 3]),
    ("dependency kernels are others than their weights", (UP, "design", "kernel_size"), [5, 5]),
    ("dependency kernels are huge", (UP, "design", "kernel_size"), [HUGE, HUGE]),
    ("dependency kernels are as large as memory", (CONV, "design", "kernel_size"), [9999, 999]),
    ("dependency groups are none", (UP, "design", "groups"), 0),
    ("dependency groups do not divide", (UP, "design", "groups"), 3),
    ("dependency groups are others than their weights", (UP, "design", "groups"), 2),
    ("dependency groups are negative", (UP, "design", "groups"), -2),
    ("dependency groups are huge", (UP, "design", "groups"), HUGE),
    ("a schedule is unknown", (UP, "design", "schedule"), "random"),
    ("a schedule is a list", (UP, "design", "schedule"), []),
    ("a schedule is another than its weights'", (UP, "design", "schedule"), "sequential"),
    ("a schedule shares kernels that are not shared", (UP, "design", "schedule"), "masked"),
    ("input stages are negative", (UP, "design", "input_stages"), -1),
    ("input stages are more than there are stages", (UP, "design", "input_stages"), 9),
    ("gates are a number", (UP, "gates"), 0.5),
    ("a gate is not a number", (UP, "gates"), {"": float("nan")}),
    ("a gate is infinite", (UP, "gates"), {"": float("inf")}),
    ("a gate is more than open", (UP, "gates"), {"": 1.5}),
    ("a gate is less than closed", (UP, "gates"), {"": -0.1}),
    ("a gate is true", (UP, "gates"), {"": True}),
    ("a gate is a word", (UP, "gates"), {"": "open"}),
    ("a gate is nothing", (UP, "gates"), {"": None}),
    ("a gate is larger than any float", (UP, "gates"), {"": 10**400}),
    ("a gate is in no module", (UP, "gates"), {"nowhere": 0.5}),
    ("a gate is in a module without one", (CONV, "gates"), {"": 0.5}),
    ("a gate is in somebody else's module", (UP, "gates"), {"norm": 0.5}),
]  # fmt: skip


def plan_in(folder):
    return json.loads((folder / "pixelize.json").read_text())


def put(plan, path, value):
    if isinstance(path[0], str) and path[0] in {s["name"] for s in plan["sites"]}:
        plan = next(s for s in plan["sites"] if s["name"] == path[0])
        path = path[1:]
    for step in path[:-1]:
        plan = plan[step]
    plan[path[-1]] = value


def with_plan(saved, tmp_path, plan):
    """A copy of the saved folder with another plan, whose own checksum is right: a stranger can count too."""
    folder = shutil.copytree(saved, tmp_path / "copy")
    plan.pop("checksum", None)
    text = plan if isinstance(plan, str) else to_text(plan)
    (folder / "pixelize.json").write_text(text)
    return folder


@pytest.mark.parametrize("path, value", [c[1:] for c in NONSENSE], ids=[c[0] for c in NONSENSE])
def test_nonsense_in_a_plan_is_refused(saved, tmp_path, path, value):
    plan = plan_in(saved)
    put(plan, path, value)
    refused(with_plan(saved, tmp_path, plan))


def test_the_sentences_are_enough_and_differ():
    assert len({c[0] for c in NONSENSE}) == len(NONSENSE) >= 150


@pytest.mark.parametrize(
    "name", ["name", "names", "kind", "type", "geometry", "options", "layer", "design", "gates"]
)
def test_a_site_without_one_of_its_parts_is_refused(saved, tmp_path, name):
    plan = plan_in(saved)
    del plan["sites"][0][name]
    refused(with_plan(saved, tmp_path, plan), match=name)


@pytest.mark.parametrize("name", ["format", "model", "sites", "aliases", "sha256"])
def test_a_plan_without_one_of_its_parts_is_refused(saved, tmp_path, name):
    plan = plan_in(saved)
    del plan[name]
    refused(with_plan(saved, tmp_path, plan))


@pytest.mark.parametrize("which", range(5))
def test_a_site_left_out_is_refused(saved, tmp_path, which):
    plan = plan_in(saved)
    del plan["sites"][which]
    refused(with_plan(saved, tmp_path, plan))


@pytest.mark.parametrize("which", range(5))
def test_a_site_listed_twice_is_refused(saved, tmp_path, which):
    plan = plan_in(saved)
    plan["sites"].append(copy.deepcopy(plan["sites"][which]))
    refused(with_plan(saved, tmp_path, plan), match="twice")


def test_a_module_listed_under_both_of_its_names_is_refused(saved, tmp_path):
    plan = plan_in(saved)
    again = copy.deepcopy(next(s for s in plan["sites"] if s["name"] == "up"))
    plan["sites"].append(again | {"name": "same"})
    refused(with_plan(saved, tmp_path, plan), match="twice")


TEXTS = {
    "it is empty": b"",
    "it is cut short": b'{"format": 2, "sites": [',
    "it is deeper than Python's stack": b"[" * 200_000,
    "it is deeper than Python's stack, in objects": b'{"a":' * 200_000,
    "it is no text": bytes(range(256)),
    "it is UTF-16": '{"format": 2}'.encode("utf-16"),
    "a name stands twice": b'{"format": 2, "format": 1}',
    "it is a list": b"[]",
    "it is a number": b"1",
    "it is a number of a million digits": b"1" * 1_000_000,
    "it is nothing": b"null",
    "it holds NaN": b'{"format": NaN}',
    "it is larger than any plan": b'{"format": 2, "sites": [' + b"{}," * 6_000_000 + b"{}]}",
    "it lists a hundred thousand sites": None,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_no_plan_is_refused(saved, tmp_path, text):
    folder = shutil.copytree(saved, tmp_path / "copy")
    if text is None:
        plan = plan_in(saved)
        del plan["checksum"], plan["sites"][0]["options"]
        small = {"name": "a", "names": [], "kind": "resize", "type": "", "layer": "dcl", "gates": {}}
        plan["sites"] = [plan["sites"][0] | small | {"name": f"m{i}"} for i in range(100_000)]
        text = json.dumps(plan).encode()
    (folder / "pixelize.json").write_bytes(text)
    refused(folder)


def test_any_changed_byte_of_a_plan_is_noticed(saved):
    text = (saved / "pixelize.json").read_bytes()
    right = parse(text, "here")
    rng = random.Random(0)
    noticed = 0
    for place in range(0, len(text), 2):
        changed = bytearray(text)
        changed[place] = rng.choice([b for b in range(256) if b != text[place]])
        try:
            found = parse(bytes(changed), "here")
        except LoadError:
            noticed += 1
            continue
        # white space, and the note of the source, which `load` does not read
        assert (found.model, found.sites, found.aliases, found.sha256) == (
            right.model, right.sites, right.aliases, right.sha256,
        )  # fmt: skip
    assert noticed > len(text) / 8


def tensors_in(folder):
    return {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}


WEIGHTS = {
    "a tensor is missing": lambda t: t.pop("norm.weight"),
    "all are missing": lambda t: t.clear(),
    "there is one more": lambda t: t.update(more=torch.zeros(1)),
    "one has another name": lambda t: t.update(named=t.pop("norm.weight")),
    "one has another shape": lambda t: t.update({"norm.weight": torch.zeros(4)}),
    "one is a number": lambda t: t.update({"norm.weight": torch.zeros(())}),
    "one is empty": lambda t: t.update({"norm.weight": torch.zeros(0)}),
    "one has a dimension more": lambda t: t.update({"norm.weight": torch.zeros(3, 1)}),
    "one is of whole numbers": lambda t: t.update({"norm.weight": torch.zeros(3, dtype=torch.int32)}),
    "one is of truths": lambda t: t.update({"norm.weight": torch.zeros(3, dtype=torch.bool)}),
    "a counter is a fraction": lambda t: t.update({"norm.num_batches_tracked": torch.zeros(())}),
    "a dependency kernel is missing": lambda t: t.pop("up.dependency_kernels.0"),
    "a kernel is smaller": lambda t: t.update({"up.dependency_kernels.0": torch.zeros(4, 4, 1, 2)}),
    "a kernel is larger": lambda t: t.update({"up.dependency_kernels.0": torch.zeros(4, 4, 9, 9)}),
    "the transposed kernel is another's": lambda t: t.update({"up.weight": torch.zeros(3, 4, 2, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_fit_are_refused(saved, tmp_path, change):
    folder = shutil.copytree(saved, tmp_path / "copy")
    tensors = tensors_in(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(rehashed(folder))


def rehashed(folder):
    from hashlib import sha256

    plan = plan_in(folder)
    del plan["checksum"]
    plan["sha256"] = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "pixelize.json").write_text(to_text(plan))
    return folder


HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
BYTES = {
    "it is empty": b"",
    "it is a pickle": b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02Rq\x03.",
    "it is a zip": b"PK\x03\x04" + bytes(100),
    "its header is longer than itself": (2**40).to_bytes(8, "little") + HEADER,
    "its header is no JSON": (9).to_bytes(8, "little") + b"not JSON!",
    "its header is deeper than the stack": (10**5).to_bytes(8, "little") + b"[" * 10**5,
    "its tensors lie outside": len(HEADER).to_bytes(8, "little") + HEADER,
    "its tensors overlap": (106).to_bytes(8, "little")
    + (HEADER[:-1] + b"," + HEADER[1:].replace(b'"a"', b'"b"')).ljust(106)
    + bytes(4),
    "its tensor is huge": (73).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[999999,9999999],"data_offsets":[0,4]}}'.ljust(73)
    + bytes(4),
}


@pytest.mark.parametrize("contents", BYTES.values(), ids=BYTES)
def test_a_file_that_holds_no_weights_is_refused(saved, tmp_path, contents):
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(contents)
    refused(rehashed(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "pixelize.json"])
@pytest.mark.parametrize(
    "what",
    ["nothing", "a folder", "a pipe", "a link to elsewhere", "a link to itself", "a device", "a link up"],
)
def test_what_is_no_file_of_the_folder_is_refused(saved, tmp_path, name, what):
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / name).unlink()
    match what:
        case "a folder":
            (folder / name).mkdir()
        case "a pipe":
            os.mkfifo(folder / name)
        case "a link to elsewhere":
            (folder / name).symlink_to(saved / name)
        case "a link to itself":
            (folder / name).symlink_to(folder / name)
        case "a device":
            (folder / name).symlink_to("/dev/zero")
        case "a link up":
            (folder / name).symlink_to(Path("..") / name)
            shutil.copy(saved / name, tmp_path / name)
    refused(folder, match=name)


def test_a_link_inside_of_a_hubs_cache_is_followed(saved, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0a", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("model.safetensors", "pixelize.json"):
        shutil.copy(saved / name, blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert len(pixelize.report(pixelize.load(snapshot, Net())).converted) == 5


def test_a_folder_of_the_first_format_still_loads(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "old")
    plan = plan_in(saved)
    del plan["checksum"]
    (folder / "pixelize.json").write_text(json.dumps(plan | {"format": 1}))
    x = torch.randn(1, 3, 4, 4)
    old, new = (pixelize.load(f, Net().eval()) for f in (folder, saved))
    assert torch.equal(old(x), new(x))


def test_the_source_is_a_note_that_may_be_edited(saved, tmp_path):
    plan = plan_in(saved)
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / "pixelize.json").write_text(json.dumps(plan | {"source": "other:Net"}))
    pixelize.load(folder, Net())


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, nn.utils.weight_norm, parametrizations.orthogonal]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_random_layers_of_normed_models_load(tmp_path, wrap):
    def net():
        return nn.Sequential(wrap(nn.ConvTranspose2d(4, 4, 4, 2, 1)))

    converted = pixelize.convert(net(), init="random").eval()
    loaded = pixelize.load(pixelize.save(converted, tmp_path / "out"), net()).eval()
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(loaded(x), converted(x))
    assert pixelize.save(loaded, tmp_path / "again")


def test_a_bare_resize_is_loaded_as_the_model_is(tmp_path):
    def net():
        return nn.Sequential(nn.Conv2d(2, 2, 1), nn.Upsample(scale_factor=2))

    converted = pixelize.convert(net(), example_inputs=torch.randn(1, 2, 3, 3), sites=("resize",))
    loaded = pixelize.load(pixelize.save(converted, tmp_path / "out"), net().double())
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
