"""Backward passes in segments: the gradients of whole passes, and never more of them at a time than the graph demands."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dtme
from dtme import backward as backward_module
from dtme import cuts as cuts_module
from dtme.backward import BackwardPasses, one_by_one
from dtme.blocks import find_blocks
from dtme.capture import Capture, capture
from dtme.cuts import Cut, cut, made_behind, may_be_cut
from dtme.gradients import token_gradients
from dtme.segments import in_segments
from models import TinyViT, make_batches, task_losses, timm_multitask, tiny_vit, torch_encoder_multitask


@pytest.fixture(autouse=True)
def _everything_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts_module, "FEW", {})
    monkeypatch.setattr(backward_module, "FEW", {})


TASKS = ("depth", "semseg", "scene")


def gathered(
    model: nn.Module, batch: Any, *, cut_behind: bool, blocks: Any = None
) -> tuple[dict[str, Any], list[list[str]]]:
    """By block the gradients of all tasks, and which blocks were found together."""
    found, together = {}, []
    model = model.eval().requires_grad_(False)
    named = find_blocks(model, blocks)
    with capture(named, differentiable=True, cut_behind=may_be_cut(model, named) if cut_behind else ()) as caught:
        with caught.reading(batch):
            losses = task_losses(model, batch)
        left = len(caught.cuts)
        assert bool(left) == cut_behind
        for name, gradients in token_gradients(losses, caught, 0, BackwardPasses()):
            if not together or len(caught.cuts) < left:
                together.append([])
            left = len(caught.cuts)
            together[-1].append(name)
            found[name] = gradients
    return found, together


def assert_alike(model: nn.Module, blocks: Any = None, *, exactly: bool = False) -> list[list[str]]:
    """The gradients through a graph with cuts are those through one without; tells which were found together."""
    (batch,) = make_batches(model, (3,))
    whole, at_once = gathered(model, batch, cut_behind=False, blocks=blocks)
    found, together = gathered(model, batch, cut_behind=True, blocks=blocks)
    assert at_once == [list(whole)]
    assert found.keys() == whole.keys()
    for name, gradients in found.items():
        for task, gradient in gradients.items():
            if exactly:
                assert torch.equal(gradient, whole[name][task]), (name, task)
            torch.testing.assert_close(gradient, whole[name][task], rtol=1e-9, atol=1e-12)
    return together


@pytest.mark.parametrize("make", [tiny_vit, timm_multitask, lambda: torch_encoder_multitask(True)])
def test_a_plain_trunk_is_gone_through_block_by_block(make: Any):
    model = make().double()
    together = assert_alike(model, exactly=True)
    assert together == [[name] for name in reversed(find_blocks(model))]


class Trunk(TinyViT):
    """Blocks in a way of its own from the first tokens to what heads read."""

    def __init__(self, way: Callable[[nn.ModuleList, Tensor], Tensor]) -> None:
        super().__init__(TASKS)
        self.way = way

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        tokens = self.way(self.blocks, self.embed(image))
        return {task: head(self.norm(tokens), len(image)) for task, head in self.heads.items()}


def taps(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Heads read all blocks."""
    read = torch.zeros_like(tokens)
    for number, block in enumerate(blocks):
        tokens = block(tokens)
        read = read + (number + 1) * tokens.sin()
    return read


def keys_of_the_first(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """What is made inside the first block is read again behind later ones."""
    kept: list[Tensor] = []
    own: Any = blocks[0]
    handle = own.attention.register_forward_hook(lambda module, args, output: kept.append(output.cos()))
    for block in blocks:
        tokens = block(tokens) + kept[0]
    handle.remove()
    return tokens


def side_by_side(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Two blocks read the same tokens."""
    tokens = blocks[3](tokens)
    return blocks[2](blocks[0](tokens) + blocks[1](tokens)) + tokens


def recurrent(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Blocks run twice."""
    for block in (*blocks, *blocks):
        tokens = block(tokens)
    return tokens


def written_in_place(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """What a block gives is written in place, as its view is."""
    for block in blocks:
        tokens = block(tokens)
        tokens += 1.0
        tokens.flatten(1).mul_(0.9)
    return tokens


def skipped(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Ways around two blocks at a time, as in a U-Net."""
    first = blocks[0](tokens)
    second = blocks[1](first)
    return blocks[3](blocks[2](second) + first.tanh()) + tokens


def collected_by_hooks(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Heads read what hooks of the blocks have collected, as those of transformers read hidden states."""
    kept: list[Tensor] = []
    handles = [block.register_forward_hook(lambda block, args, output: kept.append(output)) for block in blocks]
    for block in blocks:
        tokens = block(tokens)
    for handle in handles:
        handle.remove()
    return tokens + kept[0].sin() + kept[2].cos()


def seeing_each_other(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Two ways side by side, each of which looks at the other before the other goes on."""
    one, other = tokens.sin(), tokens.cos()
    for first, second in ((blocks[0], blocks[1]), (blocks[2], blocks[3])):
        one = first(one + other.tanh())
        other = second(other + one.tanh())
    return one * other


def a_path_beside(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """What enters a block has been read by another one, in part, before."""
    tokens = blocks[0](tokens)
    slow = blocks[1](tokens[:, ::2])
    fast = blocks[2](tokens)
    return blocks[3](fast + slow.mean(1, keepdim=True))


ONE_BY_ONE = [["blocks.3"], ["blocks.2"], ["blocks.1"], ["blocks.0"]]


@pytest.mark.parametrize(
    ("way", "together"),
    [
        (taps, ONE_BY_ONE),
        (keys_of_the_first, ONE_BY_ONE),
        (side_by_side, [["blocks.2"], ["blocks.0", "blocks.1"], ["blocks.3"]]),
        (recurrent, ONE_BY_ONE),
        (written_in_place, ONE_BY_ONE),
        (skipped, ONE_BY_ONE),
        (collected_by_hooks, ONE_BY_ONE),
        (seeing_each_other, ONE_BY_ONE),
        (a_path_beside, [["blocks.3"], ["blocks.1", "blocks.2"], ["blocks.0"]]),
    ],
)
def test_any_way_through_the_blocks(way: Any, together: list[list[str]]):
    torch.manual_seed(0)
    assert assert_alike(Trunk(way).double()) == together


class Handing(nn.Module):
    """A block that hands its output on by another way as well."""

    def __init__(self, block: Any, handed: list[Tensor]) -> None:
        super().__init__()
        self.block = block
        self.norm = nn.LayerNorm(16)
        self.handed = handed
        self.norm.register_forward_hook(lambda module, args, output: handed.append(output))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.block(tokens))


def test_an_output_that_is_handed_on_from_inside_of_the_block():
    handed: list[Tensor] = []

    def way(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
        handed.clear()
        for block in blocks:
            tokens = block(tokens)
        return tokens + handed[0].sin() + handed[2].cos()

    model = Trunk(way).double()
    model.blocks = nn.ModuleList(Handing(block, handed) for block in model.blocks).double()
    assert_alike(model, r"blocks\.\d")


@dataclass
class Out:
    """What a block may return."""

    tokens: Tensor
    beside: Tensor


class Told(nn.Module):
    """A block that gives two tensors, counted on the way back."""

    def __init__(self, block: nn.Module, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.block, self.give = block, give
        self.backwards = 0

    def forward(self, tokens: Tensor) -> Any:
        made = self.block(tokens)
        if made.requires_grad:
            made.register_hook(self.count)
        return self.give(made, made.sin())

    def count(self, gradient: Tensor) -> None:
        self.backwards += 1


@pytest.mark.parametrize(
    ("give", "takes"),
    [
        (lambda a, b: (a, b), lambda out: out),
        (lambda a, b: {"tokens": a, "beside": [b, None]}, lambda out: (out["tokens"], out["beside"][0])),
        (Out, lambda out: (out.tokens, out.beside)),
        (lambda a, b: (a, Out(a, b)), lambda out: (out[0], out[1].tokens + out[1].beside)),
    ],
)
def test_a_block_that_gives_several_tensors_is_gone_through_once(give: Any, takes: Any):
    def way(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
        beside = tokens
        for block in blocks:
            tokens, beside = takes(block(tokens + beside.cos()))
        return tokens + beside

    model = Trunk(way).double()
    model.blocks = nn.ModuleList(Told(block, give) for block in model.blocks)
    assert assert_alike(model, r"blocks\.\d") == ONE_BY_ONE
    assert [block.backwards for block in model.blocks] == [2 * len(TASKS)] * 4  # without cuts, and with them


def test_a_view_beside_what_it_views_is_not_cut_off_from_it():
    def way(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
        for block in blocks:
            whole, first = block(tokens)
            whole.mul_(3.0)
            tokens = whole + first
        return tokens

    model = Trunk(way).double()
    model.blocks = nn.ModuleList(Told(block, lambda a, b: (b, b[:, :1])) for block in model.blocks)
    (batch,) = make_batches(model, (3,))
    named = find_blocks(model, r"blocks\.\d")
    with capture(named, differentiable=True, cut_behind=set(named)) as caught, caught.reading(batch):
        task_losses(model.requires_grad_(False), batch)
        assert not caught.cuts


def test_streams_that_have_parted_are_gone_through_once_per_task():
    model = tiny_vit(TASKS).double()
    dtme.apply(
        model, dtme.Plan(TASKS, modulate={"blocks.1": TASKS}, expand={"blocks.2": TASKS}, adapt={"blocks.3": TASKS})
    )
    runs = [0] * 4
    for number, block in enumerate(model.blocks):
        own: Any = block

        def seen(module: Any, args: Any, output: Tensor, number: int = number) -> None:
            def count(gradient: Tensor) -> None:
                runs[number] += 1

            if output.requires_grad:
                output.register_hook(count)

        own.norm2.register_forward_hook(seen)
    assert assert_alike(model) == ONE_BY_ONE
    assert runs == [2 * len(TASKS)] * 4


def test_hidden_states_of_transformers():
    from transformers import BertConfig, BertModel

    class Reading(nn.Module):
        tasks = ("rating", "topic")

        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                vocab_size=20, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32
            )
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.trunk = BertModel(config)
                self.heads = nn.ModuleDict({"rating": nn.Linear(16, 1), "topic": nn.Linear(16, 3)})

        def draw(self, b: int, generator: torch.Generator) -> tuple[Tensor, ...]:
            return (torch.randint(20, (b, 7), generator=generator),)

        def forward(self, words: Tensor) -> dict[str, Tensor]:
            states = self.trunk(input_ids=words, output_hidden_states=True).hidden_states
            read = states[1] + states[3].sin() + states[4]
            return {task: head(read.mean(1)) for task, head in self.heads.items()}

    together = assert_alike(Reading().double())
    assert together == [[f"trunk.encoder.layer.{place}"] for place in reversed(range(4))]


def test_a_loss_that_takes_gradients_through_the_trunk():
    def way(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
        with torch.enable_grad():
            made = tokens = tokens.detach().requires_grad_()
            for block in blocks:
                made = block(made)
            (forces,) = torch.autograd.grad(made.square().sum(), tokens, create_graph=True)
        return made + forces

    model = Trunk(way).double().requires_grad_(False).eval()
    batches = make_batches(model, (3, 3))
    report = dtme.analyze(model, task_losses, batches)
    assert bool(report.gradient_size.isfinite().all())


def test_what_is_written_on_tokens_goes_on_with_them():
    x = torch.ones(3, requires_grad=True)
    made = 2 * x
    made.grid = (1, 3)  # pyright: ignore[reportAttributeAccessIssue]
    cuts: list[Cut] = []
    replaced: Any = cut(made, cuts)
    assert replaced is not made
    assert replaced.grid == (1, 3)


def test_what_was_cut_is_not_held_in_a_cycle():
    gc.disable()
    try:
        cuts: list[Cut] = []
        replaced = cut({"tokens": (2 * torch.ones(3, requires_grad=True), None)}, cuts)["tokens"][0]
        gone = weakref.ref(replaced)
        cuts.clear()
        del replaced
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("seed", range(60))
def test_any_graph_gives_the_gradients_of_whole_passes(seed: int):
    """Graphs drawn at random: chains with ways around, nodes of two outputs, tensors without a gradient, losses from anywhere."""
    draw = random.Random(seed)

    def build(*, cutting: bool) -> tuple[list[Tensor], list[Tensor], list[int], list[Cut]]:
        draw.seed(seed)
        cuts: list[Cut] = []
        made = [torch.arange(1.0, 5.0, dtype=torch.float64).requires_grad_()]
        for _ in range(draw.randint(3, 12)):
            one = made[-1] if draw.random() < 0.7 else draw.choice(made)
            kind = draw.randrange(5)
            if kind == 0:
                new = [one.sin() + 1]
            elif kind == 1:
                new = [one * (draw.choice(made) if draw.random() < 0.3 else 0.5)]
            elif kind == 2:
                new = [torch.cat(half[::-1]) if draw.random() < 0.5 else half[0].repeat(2) for half in [one.chunk(2)]]
            elif kind == 3:
                smallest, order = one.sort()
                new = [smallest + order]
            else:
                new = [part.repeat(2) for part in one.chunk(2)]
            if draw.random() < 0.5 and cutting:
                new = cut(new, cuts)
            made += new
        made.append(made[-1].detach() if draw.random() < 0.2 else made[-1].cos())
        losses = [(made[-1] * (place + 1)).square().sum() for place in range(2)]
        if draw.random() < 0.4:
            losses.append(draw.choice(made).square().sum())
        chosen = [
            place for place in draw.sample(range(len(made)), draw.randint(1, len(made))) if made[place].requires_grad
        ]
        return losses, [made[place] for place in chosen], [made_behind(made[place], cuts) for place in chosen], cuts

    losses, tensors, _, _ = build(cutting=False)
    if not tensors:
        pytest.skip("nothing to differentiate by was drawn")
    expected = one_by_one(losses, tensors)
    losses, tensors, behind, cuts = build(cutting=True)
    every: list[list[Tensor | None]] = [[None] * len(tensors) for _ in losses]
    seen = []
    for places, found in in_segments(losses, tensors, behind, cuts):
        seen += places
        for mine, own in zip(every, found, strict=True):
            for place, gradient in zip(places, own, strict=True):
                mine[place] = gradient
    assert sorted(seen) == list(range(len(tensors)))
    for own, wanted in zip(every, expected, strict=True):
        for gradient, other in zip(own, wanted, strict=True):
            zero = torch.zeros(4, dtype=torch.float64)
            torch.testing.assert_close(zero if gradient is None else gradient, zero if other is None else other)


def chain(length: int = 4) -> tuple[list[Tensor], list[Cut]]:
    cuts: list[Cut] = []
    made = [torch.ones(3, requires_grad=True)]
    for _ in range(length - 1):
        made.append(cut(2 * made[-1] + made[-1].sin(), cuts))
    return made, cuts


def test_a_loss_that_reaches_nothing_has_no_gradients():
    made, cuts = chain()
    losses = [torch.zeros(()), made[-1].sum(), torch.ones(2, requires_grad=True).sum()]
    every = [found for _, found in in_segments(losses, made, range(4), cuts)]
    assert len(every) == 4
    for found in every:
        assert [own[0] is None for own in found] == [True, False, True]


def test_the_graph_is_let_go_segment_by_segment():
    made, cuts = chain()
    ends = [own.ends[0].grad_fn for own in cuts]
    gone: list[str] = []
    for number, end in enumerate(ends):
        assert end is not None
        end.metadata["gone"] = Last(gone, str(number))
    del ends, end
    losses = [made[-1].sum(), 2 * made[-1].sum()]
    before = []
    for places, _ in in_segments(losses, made, range(4), cuts):
        before.append((places, list(gone)))
    assert before == [([3], []), ([2], ["2"]), ([1], ["2", "1"]), ([0], ["2", "1", "0"])]


class Last:
    """Says when it goes."""

    def __init__(self, gone: list[str], name: str) -> None:
        self.gone, self.name = gone, name

    def __del__(self) -> None:
        self.gone.append(self.name)


def test_what_is_few_is_left_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuts_module, "FEW", {"cpu": 3})
    x = torch.ones(3, requires_grad=True)
    cuts: list[Cut] = []
    y, z = cut((2 * x, torch.ones(4)), cuts)
    assert not cuts
    y, z = cut((torch.cat([x, x]), x.detach().repeat(2)), cuts)
    assert [own.beginnings[0].shape for own in cuts] == [(6,)]
    assert not z.requires_grad
    assert y.grad_fn is not None


def test_what_is_given_twice_is_cut_once():
    x = torch.ones(3, requires_grad=True)
    cuts: list[Cut] = []
    made = 2 * x
    found = cut({"tokens": made, "all": (made, None, "name")}, cuts)
    assert len(cuts) == 1
    assert found["tokens"] is found["all"][0]
    assert found["all"][1:] == (None, "name")


@pytest.mark.parametrize(
    ("hooked", "together"),
    [
        ("blocks.1", [["blocks.3"], ["blocks.1", "blocks.2"], ["blocks.0"]]),
        ("blocks.1.attention", ONE_BY_ONE),
        ("heads", ONE_BY_ONE),
    ],
)
def test_a_block_with_hooks_on_its_way_back_is_left_whole(hooked: str, together: list[list[str]]):
    model = tiny_vit().double()
    seen = []
    model.get_submodule(hooked).register_full_backward_hook(
        lambda block, coming, given: seen.append((coming[0], given[0]))
    )
    assert assert_alike(model) == together
    assert len(seen) == (0 if hooked == "heads" else 2 * len(TASKS))
    for whole, cut_open in zip(seen[: len(TASKS)], seen[len(TASKS) :], strict=True):
        for one, other in zip(whole, cut_open, strict=True):
            torch.testing.assert_close(one, other)


def test_nothing_is_cut_within_a_module_with_hooks_on_its_way_back():
    model = tiny_vit()
    model.register_full_backward_hook(lambda *_: None)
    assert may_be_cut(model, find_blocks(model)) == set()
    handle = nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        assert may_be_cut(tiny_vit(), find_blocks(model)) == set()
    finally:
        handle.remove()
    assert may_be_cut(tiny_vit(), find_blocks(model)) == set(find_blocks(model))


def test_an_analysis_in_segments_is_that_of_whole_passes(monkeypatch: pytest.MonkeyPatch):
    model: nn.Module = tiny_vit().double()
    batches, reports = make_batches(model, (3, 2)), []
    for few in (2**30, 0):
        monkeypatch.setattr(cuts_module, "FEW", {"cpu": few})
        reports.append(dtme.analyze(model, task_losses, batches))
    whole, segments = reports
    assert torch.equal(whole.range_rate, segments.range_rate)
    assert torch.equal(whole.null_rate, segments.null_rate)
    torch.testing.assert_close(whole.gradient_size, segments.gradient_size)


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_an_analysis_under_checkpointing_repeats_each_block_once_per_task(every: int):
    """From the second batch on, when it is known what checkpoints repeat together, cuts lie between that, not inside of it."""
    model = tiny_vit().double()
    batches = make_batches(model, (3, 2))
    plain = dtme.analyze(model, task_losses, batches)
    counted: list[nn.Module] = []

    class Checkpointed(nn.ModuleList):
        def __iter__(self) -> Any:
            own = [self[place] for place in range(len(self))]
            for first in range(0, len(own), every):
                run = nn.Sequential(*own[first : first + every])
                yield lambda tokens, run=run: checkpoint(run, tokens, use_reentrant=False)

    blocks = [model.blocks[place] for place in range(4)]
    model.blocks = Checkpointed(model.blocks)
    report = dtme.analyze(model, task_losses, batches, blocks=r"blocks\.\d+")
    assert torch.equal(report.range_rate, plain.range_rate)
    assert torch.equal(report.null_rate, plain.null_rate)
    model.requires_grad_(False)
    named = dict(zip(report.blocks, blocks, strict=True))
    with capture(named, differentiable=True, cut_behind=set(named)) as caught:
        for block in blocks:
            block.register_forward_pre_hook(lambda block, args: counted.append(block))
        runs = [_runs(model, batch, caught, counted) for batch in batches]

    assert runs[1] == (4, 4 * len(TASKS))
    assert runs[0] == (4, 4 * len(TASKS) * (every if every < 4 else 4) if every != 3 else 10 * len(TASKS))


def _runs(model: nn.Module, batch: Any, caught: Capture, counted: Sequence[nn.Module]) -> tuple[int, int]:
    """How often blocks run, forwards and then again on the way back."""
    before = len(counted)
    with caught.reading(batch):
        losses = task_losses(model, batch)
    forward = len(counted)
    found = dict(token_gradients(losses, caught, 0, BackwardPasses()))
    assert set(found) == set(caught.entries)
    return forward - before, len(counted) - forward
