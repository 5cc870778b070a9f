"""Models with layers of each task's own: at the start the plain model, then one plain model per task."""

import copy

import pytest
import torch
from models import make_batches, task_losses, timm_multitask, tiny_vit, torch_encoder_multitask
from torch import Tensor, nn

from experiments.baselines import FinalAffine, LoRAPerTask, OwnCopies, branch, pcgrad
from experiments.baselines.layer_copies import key_of

TASKS = ("depth", "semseg", "scene")
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
NAMES = {
    "a middle layer": ["trunk.blocks.1.mlp.fc1"],
    "the first layer and the last norm": ["trunk.patch_embed.proj", "trunk.norm"],
    "the positions": ["trunk.pos_embed"],
    "the last norm": ["trunk.norm"],
    "layers here and there": ["trunk.blocks.2.attn.qkv.weight", "trunk.blocks.1.norm2"],
}
MODELS = {
    "vit": lambda: tiny_vit(TASKS, depth=3),
    "timm": lambda: timm_multitask(TASKS, depth=3),
    "batch first": lambda: torch_encoder_multitask(True, TASKS, depth=3),
    "tokens first": lambda: torch_encoder_multitask(False, TASKS, depth=3),
}
WRAPPERS = {
    "own copies": lambda model: OwnCopies(model, TASKS, NAMES["layers here and there"]),
    "branching": lambda model: branch(model, TASKS, 2),
    "LoRA": lambda model: LoRAPerTask(model, TASKS, rank=2),
    "final affine": lambda model: FinalAffine(model, TASKS, 16),
}


def make(kind: str = "timm") -> nn.Module:
    return MODELS[kind]().double()


def moved(model: nn.Module) -> nn.Module:
    """What was added, moved away from where it starts."""
    with torch.no_grad():
        for _, parameter in model.added_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def alone(base: nn.Module, own: OwnCopies, task: str) -> nn.Module:
    """A plain model with the task's layers in it."""
    plain = copy.deepcopy(base)
    if task in own.own:
        for name in own.tensors:
            plain.get_parameter(name).data.copy_(getattr(own.own[task], key_of(name)))
    return plain


def calls_of(modules: list[nn.Module], run) -> list[int]:
    counts = [0] * len(modules)

    def count(place: int) -> None:
        counts[place] += 1

    # Hooks run at each call of a block, kept result or not; its norm runs only where the block computes.
    handles = [m.register_forward_hook(lambda *_, place=place: count(place)) for place, m in enumerate(modules)]
    run()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("which", NAMES)
def test_every_task_runs_through_its_own_copies(which: str):
    base = make()
    (batch,) = make_batches(base, (3,))
    plain = base(*batch["inputs"])
    own = OwnCopies(copy.deepcopy(base), TASKS, NAMES[which])
    for task, output in own(*batch["inputs"]).items():
        torch.testing.assert_close(output, plain[task], **CLOSE)
    for task, output in moved(own)(*batch["inputs"]).items():
        torch.testing.assert_close(output, alone(base, own, task)(*batch["inputs"])[task], **CLOSE)
        assert torch.equal(output, plain[task]) == (task == "depth")  # the first task has the model's own layers


@pytest.mark.parametrize("which", NAMES)
def test_gradients_are_those_of_one_model_per_task(which: str):
    base = make()
    (batch,) = make_batches(base, (3,))
    own = moved(OwnCopies(copy.deepcopy(base), TASKS, NAMES[which]))
    torch.stack(list(task_losses(own, batch).values())).sum().backward()
    models = {task: alone(base, own, task) for task in TASKS}
    for task, model in models.items():
        task_losses(model, batch)[task].backward()
    for name, parameter in own.model.named_parameters():
        serving = TASKS[:1] if name in own.tensors else TASKS
        terms = [g for task in serving if (g := models[task].get_parameter(name).grad) is not None]
        torch.testing.assert_close(parameter.grad, torch.stack(terms).sum(0), **CLOSE)
    for task in TASKS[1:]:
        for name in own.tensors:
            torch.testing.assert_close(
                getattr(own.own[task], key_of(name)).grad, models[task].get_parameter(name).grad, **CLOSE
            )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["trunk.norm"], [1, 1, 1]),
        (["trunk.blocks.2.attn.proj.bias"], [1, 1, 3]),
        (["trunk.blocks.1", "trunk.norm"], [1, 3, 3]),
        (["trunk.pos_embed"], [3, 3, 3]),
        (["trunk.patch_embed"], [3, 3, 3]),
    ],
)
def test_what_runs_before_the_first_own_layer_runs_once(names: list[str], expected: list[int]):
    model = make()
    own = OwnCopies(model, TASKS, names)
    (batch,) = make_batches(make(), (2,))
    for _ in range(2):
        assert calls_of([b.norm1 for b in model.trunk.blocks], lambda: own(*batch["inputs"])) == expected
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert calls_of([b.norm1 for b in model.trunk.blocks], lambda: model(*batch["inputs"])) == [1, 1, 1]


def test_a_layer_that_its_attention_reads_without_calling_it_parts_the_passes():
    base = make("batch first")
    own = moved(OwnCopies(copy.deepcopy(base), TASKS, ["encoder.layers.1.self_attn.out_proj.weight"]))
    (batch,) = make_batches(base, (3,))
    for task, output in own(*batch["inputs"]).items():
        torch.testing.assert_close(output, alone(base, own, task)(*batch["inputs"])[task], **CLOSE)


def test_heads_see_what_is_computed_for_their_own_task_alone():
    base = make()
    base.heads = nn.ModuleDict({task: nn.Sequential(nn.BatchNorm1d(17), base.heads[task]).double() for task in TASKS})
    own = moved(OwnCopies(base, TASKS, ["trunk.blocks.2"]))
    calls = calls_of([base.heads[task] for task in TASKS], lambda: own(torch.randn(2, 3, 32, 32, dtype=torch.float64)))
    assert calls == [1, 1, 1]
    assert [int(base.heads[task][0].num_batches_tracked) for task in TASKS] == [1, 1, 1]
    assert list(base.heads) == list(TASKS)


def test_batch_norms_among_the_own_layers_keep_statistics_of_their_own():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            self.heads = nn.ModuleDict({task: nn.Linear(2, 1) for task in TASKS})

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.trunk(x)
            return {task: head(features) for task, head in self.heads.items()}

    own = moved(OwnCopies(Model(), TASKS, ["trunk"]))
    own(torch.randn(8, 2))
    means = [own.model.trunk[1].running_mean, *(own.own[t].get_buffer("trunk-1-running_mean") for t in TASKS[1:])]
    assert len({tuple(mean.tolist()) for mean in means}) == 3
    assert int(own.model.trunk[1].num_batches_tracked) == 1


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", MODELS)
def test_at_the_start_outputs_are_the_plain_models(kind: str, wrapper: str):
    base = make(kind)
    (batch,) = make_batches(base, (3,))
    expected = base(*batch["inputs"])
    if wrapper == "own copies":
        layer = next(name for name, module in base.named_modules() if isinstance(module, nn.LayerNorm))
        model = OwnCopies(copy.deepcopy(base), TASKS, [layer])
    else:
        model = WRAPPERS[wrapper](copy.deepcopy(base))
    found = model(*batch["inputs"])
    assert list(found) == list(TASKS)
    for task in TASKS:
        torch.testing.assert_close(found[task], expected[task], **CLOSE)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_each_task_moves_what_is_its_own_and_all_move_the_trunk(wrapper: str):
    model = moved(WRAPPERS[wrapper](make()))
    (batch,) = make_batches(make(), (3,))
    added = list(model.added_parameters())
    assert added
    assert {name for name, _ in added} < {name for name, _ in model.named_parameters()}
    for task in TASKS:
        task_losses(model, batch)[task].backward()
        for name, parameter in added:
            mine = task in name.replace("own_", "").split(".")
            reached = parameter.grad is not None and bool((parameter.grad != 0).any())
            assert reached == mine, (task, name)
        weight = next(p for name, p in model.named_parameters() if "blocks.0.attn.qkv" in name and p.ndim == 2)
        assert bool((weight.grad != 0).any())
        model.zero_grad()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_training_goes_on_after_a_reload_exactly_and_a_copy_stands_alone(wrapper: str, tmp_path):
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = WRAPPERS[wrapper](timm_multitask(TASKS, depth=3))
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def go(model: nn.Module, made: torch.optim.Optimizer, batches: list) -> None:
        for batch in batches:
            torch.stack(list(task_losses(model, batch).values())).sum().backward()
            made.step()
            made.zero_grad()

    batches = make_batches(timm_multitask(TASKS), (2,) * 4)
    whole, first, second = fresh(), fresh(), fresh()
    go(*whole, batches)
    go(*first, batches[:2])
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    for part, saved in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(saved)
    twin = copy.deepcopy(second[0])
    go(*second, batches[2:])
    for one, other in zip(whole[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(twin.state_dict().values(), first[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        expected = first[0](*batches[0]["inputs"])
        for task, output in twin(*batches[0]["inputs"]).items():
            torch.testing.assert_close(output, expected[task])


def test_every_task_of_lora_is_its_merged_model():
    base = make()
    lora = moved(LoRAPerTask(copy.deepcopy(base), TASKS, rank=2, blocks=[1, 2], layers="attn.qkv|mlp.fc1"))
    values = dict(lora.named_parameters())
    (batch,) = make_batches(base, (3,))
    found = lora(*batch["inputs"])
    assert len(lora.adapted) == 4
    assert sum(p.numel() for _, p in lora.added_parameters()) == 3 * 2 * 2 * ((16 + 48) + (16 + 64))
    for task in TASKS:
        merged = copy.deepcopy(base)
        for layer in lora.adapted:
            down, up = (values[f"model.{layer}.lora_{side}.own_{task}.weight"] for side in "AB")
            merged.get_submodule(layer).weight.data += (up @ down).detach()
        torch.testing.assert_close(found[task], merged(*batch["inputs"])[task], **CLOSE)
    assert all(parameter.requires_grad for _, parameter in lora.added_parameters())
    assert calls_of([b.norm1 for b in lora.model.trunk.blocks], lambda: lora(*batch["inputs"])) == [1, 3, 3]


def test_lora_leaves_frozen_what_was_frozen_and_trains_what_was_trained():
    base = make()
    base.trunk.blocks[0].requires_grad_(False)
    lora = LoRAPerTask(base, TASKS)
    frozen = {name for name, p in lora.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in lora.named_parameters() if "blocks.0." in n and ".lora_" not in n}


def test_the_final_affine_scales_and_shifts_channels():
    base = make()
    affine = moved(FinalAffine(copy.deepcopy(base), TASKS, 16))
    images = make_batches(base, (2,))[0]["inputs"][0]
    tokens = base.trunk.forward_features(images)
    for task, output in affine(images).items():
        expected = base.heads[task](tokens * affine.scale[task] + affine.shift[task])
        torch.testing.assert_close(output, expected, **CLOSE)
    assert not any(module._forward_pre_hooks for module in affine.modules())
    with pytest.raises(ValueError, match=r"shape \(2, 17, 16\), with 17 channels there and not width=16"):
        FinalAffine(base, TASKS, 16, dim=1)(images)


def test_branches_balance_what_is_left_of_the_trunk():
    model = branch(make(), TASKS, 2)
    (batch,) = make_batches(make(), (3,))
    own = {}
    for task in TASKS[1:]:
        named = {name: parameter for name, parameter in model.added_parameters() if task in name.split(".")}
        rows = torch.autograd.grad(task_losses(model, batch)[task], list(named.values()))
        own |= dict(zip(named, rows, strict=True))
    pcgrad()(model, task_losses(model, batch))
    for name, parameter in model.added_parameters():
        torch.testing.assert_close(parameter.grad, own[name], **CLOSE)


def test_bad_arguments_are_named():
    model = make()
    with pytest.raises(ValueError, match=r"'trunk.blocks.9' holds no tensor of this model.*as 'trunk.cls_token'"):
        OwnCopies(model, TASKS, ["trunk.blocks.9"])
    with pytest.raises(ValueError, match=r"names=\(\): there is none"):
        OwnCopies(model, TASKS, [])
    with pytest.raises(ValueError, match="count=4: give 1 to 3"):
        branch(model, TASKS, 4)
    with pytest.raises(ValueError, match="layers='nothing': no linear layer"):
        LoRAPerTask(model, TASKS, layers="nothing")

    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(2, 2)
            self.heads = nn.ModuleDict({task: nn.Linear(2, 1) for task in TASKS})

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {task: self.heads[task](self.trunk(x)) for task in TASKS}

    with pytest.raises(ValueError, match="in the pass of task 'depth' the model asked for 'semseg'"):
        OwnCopies(Indexed(), TASKS, ["trunk"])(torch.ones(1, 2))
