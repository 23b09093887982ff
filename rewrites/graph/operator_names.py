"""What torch's operators, functions, methods and modules are called, by what they do to a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LINEAR = ("linear", "bilinear", "trilinear")
"""The modes of linear resizes along 1, 2 and 3 axes."""
# the modes of aten's resizes
RESIZES = {
    **{f"upsample_nearest{n}d": "nearest" for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": "nearest-exact" for n in (1, 2, 3)},
    **{f"upsample_{mode}{n}d": mode for n, mode in enumerate(LINEAR, 1)},
    "_upsample_bilinear2d_aa": "bilinear",
    "upsample_bicubic2d": "bicubic",
    "_upsample_bicubic2d_aa": "bicubic",
}
# one affine map for each channel (or each sample and channel): what was constant over a block stays so
CHANNELWISE = {
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "instance_norm", "group_norm",
    "native_group_norm", "prelu", "_prelu_kernel", "feature_dropout", "dropout1d", "dropout2d", "dropout3d",
}  # fmt: skip
# the same values: copies, casts, moves
ALIASES = {
    "contiguous", "clone", "to", "_to_copy", "type_as", "detach", "alias", "lift_fresh_copy", "float",
    "half", "double", "bfloat16", "type", "cuda", "cpu", "identity", "positive", "_assert_tensor_metadata",
}  # fmt: skip
# the modes of paddings; None: an argument tells
PADS = {
    "pad": None,
    "constant_pad_nd": "constant",
    **{f"reflection_pad{n}d": "reflect" for n in (1, 2, 3)},
    **{f"replication_pad{n}d": "replicate" for n in (1, 2, 3)},
}
PAD_MODULES: dict[Any, str] = {
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), "constant"),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), "constant"),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), "reflect"),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), "replicate"),
}
# transposed ones among them
CONVOLUTIONS = {"convolution", "_convolution"} | {
    f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)
}
UNTAGGED = {"leaky_relu"}  # pointwise, but torch 2.6 does not say so
DROPOUTS = {"dropout", "native_dropout", "alpha_dropout", "bernoulli", "rrelu", "rrelu_with_noise"}
# what Python's operators are called in aten
PYTHON_OPERATORS = {
    "truediv": "div",
    "iadd": "add",
    "imul": "mul",
    "isub": "sub",
    "itruediv": "div",
    "hard_sigmoid": "hardsigmoid",
}
POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
CHANNELWISE_MODULES = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.GroupNorm, nn.PReLU, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip


def is_pointwise(name: str) -> bool:
    """Whether the aten operator of that name makes each value of its result of one value of each operand."""
    if name in UNTAGGED:
        return True
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags
