"""Who else reads a convolution's weight: what takes the convolution's place has it in another layout."""

from __future__ import annotations

from torch import nn

from pixelize.rewrites.graph.flow import Flow


def weight_readers(model: nn.Module, flow: Flow, names: tuple[str, ...]) -> str | None:
    """Why the weight of the convolution that goes by ``names`` must stay as it is, or None if it need not."""
    for name in names:
        prefix, _, last = name.rpartition(".")
        parent = model.get_submodule(prefix) if name else None
        if last == "base_layer" and hasattr(parent, "merge"):
            return f"{type(parent).__name__} may merge its adapter into the weight: merge and unload it first"
    states = {f"{name}.weight" if name else "weight" for name in names}
    for node in flow.ops:
        if node.meta.get("state") not in states:
            continue
        for user in node.users:
            if str(user.meta.get("owner")) not in names:
                return f"its weight is read by {user.meta.get('owner') or type(model).__name__} too"
    return None
