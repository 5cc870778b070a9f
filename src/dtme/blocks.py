"""Find the blocks of a transformer: the places where tokens enter.

No class of any model library is named here; a block is recognised by what it is made of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dtme.layout import first_norm
from dtme.position_tables import spanning_tables

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def find_blocks(model: nn.Module, blocks: str | Sequence[str | int] | int | None = None) -> dict[str, nn.Module]:
    """The blocks of a model's trunk, by module name, in the order in which the model holds them.

    Args:
        model: Any module that holds a transformer.
        blocks: Which modules are meant. `None` finds them: the members of the innermost lists or sequences whose
            every member holds attention (where nothing is called attention: repeated members with a norm and linear
            layers). What lies in a dictionary of modules is left out; a decoder with attention elsewhere is not, so then
            name the trunk's. A string is a regular expression matched against the whole module name. A sequence gives names
            or suffixes of names, or integers that index the blocks `None` finds; negative ones count from the end.

    Returns:
        Module by name.

    Raises:
        ValueError: Nothing matches; the message lists what there is.

    Example:
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 3, enable_nested_tensor=False)
        >>> list(find_blocks(encoder))
        ['layers.0', 'layers.1', 'layers.2']
        >>> list(find_blocks(encoder, [-1]))
        ['layers.2']
    """
    modules = dict(model.named_modules())
    inserted = tuple(f"{name}." for name, module in modules.items() if getattr(module, "is_inserted", False))
    modules = {name: module for name, module in modules.items() if not name.startswith(inserted)}  # a copy is no block
    if blocks is None:
        found = _repeated_with_attention(modules)
        if not found:
            raise ValueError(
                "blocks=None: no transformer blocks were found in this model. Name them: blocks='regular expression' "
                f"or blocks=[names]. Modules that repeat: {_candidates(modules)}"
            )
        return found
    if isinstance(blocks, str):
        found = {name: module for name, module in modules.items() if name and re.fullmatch(blocks, name)}
        if not found:
            raise ValueError(
                f"blocks={blocks!r} matches the whole name of no module. Candidates: {_candidates(modules)}"
            )
        return found
    wanted = [blocks] if isinstance(blocks, int) else list(blocks)
    names: set[str] = set()
    for entry in wanted:
        if isinstance(entry, int):
            listed = list(find_blocks(model))
            if not -len(listed) <= entry < len(listed):
                raise ValueError(f"blocks={wanted!r}: there is no block {entry}; this model has {len(listed)} blocks.")
            names.add(listed[entry])
            continue
        matches = [name for name in modules if name and (name == entry or name.endswith("." + entry))]
        if not matches:
            raise ValueError(f"blocks: no module is called or ends in {entry!r}. Candidates: {_candidates(modules)}")
        names.update(matches)
    if not names:
        raise ValueError(f"blocks={wanted!r} names nothing. Candidates: {_candidates(modules)}")
    return {name: module for name, module in modules.items() if name in names}


def _repeated_with_attention(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    lists = [name for name, m in modules.items() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 0]
    # A head may hold attention of its own; what lies in a dictionary of modules belongs to tasks, not to the trunk. One
    # that runs, with a forward of its own, may be a trunk all the same: timm keeps trunks that return features so.
    named = {name: m for name, m in modules.items() if name and isinstance(m, nn.ModuleDict)}
    idle = {name: m for name, m in named.items() if type(m).forward is nn.Module.forward}
    for dictionaries in (named, idle):
        found = _blocks_among([name for name in lists if not _lies_in(name, dictionaries)], modules)
        if found:
            return found
    return {}


def _lies_in(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(_prefix(other)) for other in others if other != name)


def _blocks_among(containers: Sequence[str], modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    for is_block in (_holds_attention, _looks_repeated):
        whole = [
            name for name in containers if all(is_block(member, modules[name]) for member in modules[name].children())
        ]
        innermost = [name for name in whole if not any(_lies_in(other, [name]) for other in whole)]
        members = [f"{_prefix(name)}{key}" for name in innermost for key, _ in modules[name].named_children()]
        if members:
            return {name: module for name, module in modules.items() if name in set(members)}
    return {}


def _prefix(name: str) -> str:
    return f"{name}." if name else ""


def _holds_attention(member: nn.Module, container: nn.Module) -> bool:
    """A block is more than its attention: something inside it is called attention, and it has parameters besides."""
    inner = [(name, m) for name, m in member.named_modules() if name]
    return any(_ATTENTION.search(name.rsplit(".", 1)[-1]) or _ATTENTION.search(type(m).__name__) for name, m in inner)


def _looks_repeated(member: nn.Module, container: nn.Module) -> bool:
    kinds = {type(m) for m in container.children()}
    linear = sum(isinstance(m, nn.Linear) for m in member.modules())
    return len(kinds) == 1 and len(list(container.children())) > 1 and linear >= 2 and first_norm(member) is not None


def _candidates(modules: Mapping[str, nn.Module]) -> str:
    seen: dict[str, str] = {}
    for name, module in modules.items():
        if re.search(r"(^|\.)\d+$", name):
            seen.setdefault(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name), type(module).__name__)
    return ", ".join(f"{name} ({kind})" for name, kind in seen.items()) or "none (no module of this model repeats)"


def fixed_positions(block: nn.Module) -> str | None:
    """What ties a block to the positions it was built for, so that no task token can join them; `None` where nothing does.

    Convolutions and pooling need the tokens on their grid, a table of relative positions has a row for each pair of
    them (unless it can be widened: `position_tables`), and a window holds as many as it was made for.

    Example:
        >>> fixed_positions(nn.TransformerEncoderLayer(8, 2))
        >>> fixed_positions(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)))
        "Conv2d '0' mixes neighbours on a grid"
    """
    spanning = spanning_tables(block)
    for name, buffer in block.named_buffers():
        if name.rpartition(".")[0] in spanning:
            continue
        pairs = buffer.ndim == 2 and buffer.shape[0] == buffer.shape[1] > 1
        if pairs and not buffer.is_floating_point() and buffer.dtype != torch.bool:
            return f"the table {name!r} numbers the pairs of its {len(buffer)} positions"
    for name, inner in block.named_modules():
        kernel = getattr(inner, "kernel_size", None)
        mixes = max(kernel) > 1 if isinstance(kernel, tuple) else "Pool" in type(inner).__name__
        if mixes and name:
            return f"{type(inner).__name__} {name!r} mixes neighbours on a grid"
        window = getattr(inner, "window_size", None) or getattr(inner, "one_sided_attn_window_size", None)
        if window and name not in spanning:
            what = f"{type(inner).__name__} {name!r}" if name else "it"
            return f"{what} is made for windows of {window} positions"
    return None


def holders_of(model: nn.Module) -> Counter[nn.Module]:
    """Of every module, how many others hold it: one that has several runs in several places.

    Example:
        >>> shared = nn.Linear(2, 2)
        >>> holders_of(nn.Sequential(nn.Sequential(shared), nn.Sequential(shared)))[shared]
        2
    """
    return Counter(child for module in model.modules() for child in module.children())


def packing_modules(model: nn.Module) -> dict[str, Any]:
    """Modules that would pack a padded batch into a nested tensor in evaluation, which has no shape for hooks to read.

    `nn.TransformerEncoder` does so by default; with its `use_nested_tensor` off it computes the same on padded tokens.
    """
    return {name: module for name, module in model.named_modules() if getattr(module, "use_nested_tensor", False)}


def fused_projections(block: nn.Module) -> dict[str, Any]:
    """Attention that uses the weight of its `qkv` layer without calling the layer, where nothing can be added by row.

    timm does so where queries and values alone have a bias; with `qkv_bias_separate` on it calls the layer and adds the
    biases after it, the same sum.
    """
    return {
        name: module
        for name, module in block.named_modules()
        if getattr(module, "qkv_bias_separate", None) is False and getattr(module, "q_bias", None) is not None
    }
