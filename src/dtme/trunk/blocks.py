"""Find the blocks of a transformer: the places where tokens enter.

No class of any model library is named here; a block is recognised by what it is made of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from dtme._wrappers import modules_by_name, named_modules, unwrapped
from dtme.trunk.layout import first_norm

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def find_blocks(model: nn.Module, blocks: str | Sequence[str | int] | int | None = None) -> dict[str, nn.Module]:
    """The blocks of a model's trunk, by module name, in the order in which the model holds them.

    Args:
        model: Any module that holds a transformer.
        blocks: Which modules are meant. `None` finds them: the members of the innermost lists or sequences whose
            every member holds attention (where nothing is called attention: repeated members with a norm and linear
            layers). What lies in a dictionary of modules is left out, unless the only blocks are in one member of one; a
            decoder with attention elsewhere is not, so then name the trunk's. A string is a regular expression matched
            against the whole module name. A sequence gives names or suffixes of names, or integers that index the blocks
            `None` finds; negative ones count from the end.

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
    modules = modules_by_name(model)
    inserted = tuple(f"{name}." for name, module in modules.items() if getattr(module, "is_inserted", False))
    modules = {name: module for name, module in modules.items() if not name.startswith(inserted)}  # a copy is no block
    if blocks is None:
        found = _repeated_with_attention({name: unwrapped(module) for name, module in modules.items()})
        if not found:
            raise ValueError(
                "blocks=None: no transformer blocks were found in this model. Name them: blocks='regular expression' "
                f"or blocks=[names]. Modules that repeat: {_candidates(modules)}"
            )
        return {name: modules[name] for name in found}
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
    return _blocks_of_a_part(lists, idle, modules)


def _blocks_of_a_part(
    lists: Sequence[str], dictionaries: Iterable[str], modules: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The blocks in a dictionary of the model's parts, `{"stem", "encoder"}` say: the only one of whose members one holds blocks.

    Heads that hold blocks do so in several members, or else nobody can tell them from a trunk.
    """
    holding = []
    for name in dictionaries:
        members = [f"{_prefix(name)}{key}" for key, _ in modules[name].named_children()]
        found = [
            _blocks_among([own for own in lists if own == member or _lies_in(own, [member])], modules)
            for member in members
        ]
        holding.append([blocks for blocks in found if blocks])
    single = [found[0] for found in holding if len(found) == 1]
    return single[0] if len(single) == 1 else {}


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
    kinds = {type(unwrapped(m)) for m in container.children()}
    linear = sum(isinstance(m, nn.Linear) for m in member.modules())
    return len(kinds) == 1 and len(list(container.children())) > 1 and linear >= 2 and first_norm(member) is not None


def _candidates(modules: Mapping[str, nn.Module]) -> str:
    seen: dict[str, str] = {}
    for name, module in modules.items():
        if re.search(r"(^|\.)\d+$", name):
            seen.setdefault(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name), type(module).__name__)
    return ", ".join(f"{name} ({kind})" for name, kind in seen.items()) or "none (no module of this model repeats)"


def holders_of(model: nn.Module) -> Counter[nn.Module]:
    """Of every module, how many others hold it: one that has several runs in several places.

    Example:
        >>> shared = nn.Linear(2, 2)
        >>> holders_of(nn.Sequential(nn.Sequential(shared), nn.Sequential(shared)))[shared]
        2
    """
    return Counter(child for module in model.modules() for child in module.children())


def runs_last(part: str, block: nn.Module) -> bool:
    """Whether no matrix of a block comes behind those of a part, in the order in which the block holds its modules.

    Example:
        >>> block = nn.ModuleDict({"attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
        >>> runs_last("attn", block), runs_last("mlp", block)
        (False, True)
    """
    weighing = [
        name
        for name, module in named_modules(block)
        if any(weight.ndim > 1 for weight in module.parameters(recurse=False))
    ]
    return bool(weighing) and f"{weighing[-1]}.".startswith(f"{part}.")
