import hashlib
import math
import sys
from dataclasses import fields, replace

import pytest
import torch

from experiments.dense.scenes import Label, Scenes, render, suite
from experiments.dense.scenes.camera import aim, rays
from experiments.dense.scenes.edges import edges
from experiments.dense.scenes.furnishing import furnish
from experiments.dense.scenes.geometry import geometry
from experiments.dense.scenes.layout import CEILING, Layout, Light, Solid
from experiments.dense.scenes.materials import Material, Pattern
from experiments.dense.scenes.rendering import photograph
from experiments.dense.scenes.solids import Ball, Box
from experiments.dense.scenes.tracing import visible

pytestmark = pytest.mark.usefixtures("one_thread")
GREY = Material(Pattern.PLAIN, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def empty_room(*solids: Solid, yaw: float = 0.0) -> Layout:
    """A room of 4 x 3 x 5 metres, seen from 1.2 metres above the floor, straight at the back wall 4 metres ahead."""
    return Layout(
        room=(4.0, 3.0, 5.0),
        surfaces=(GREY, GREY, GREY),
        yaws=(0.0, yaw, 0.0),
        solids=solids,
        lights=(Light((2.0, 2.8, 2.5), (1.0, 1.0, 1.0)), Light((2.0, 2.5, 1.0), (0.5, 0.5, 0.5))),
        ambient=0.2,
        camera=aim((2.0, 1.2, 1.0), (2.0, 1.2, 3.0), focal=0.75),
        exposure=1.0,
        noise=0.0,
    )


def steps(size: int, focal: float) -> torch.Tensor:
    """x / z of the columns, or y / z of the rows."""
    return ((torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5) / focal


def unproject(scenes: Scenes) -> torch.Tensor:
    """Points in the camera frame, (n, 3, h, w), in float64."""
    size = scenes.depth.shape[-1]
    step = torch.stack([steps(size, f) for f in scenes.focal.double()])
    z = scenes.depth.double()
    return torch.stack((step[:, None, :] * z, step[:, :, None] * z, z), dim=1)


def digest(scenes: Scenes) -> str:
    return hashlib.sha256(b"".join(getattr(scenes, f.name).numpy().tobytes() for f in fields(scenes))).hexdigest()


@pytest.fixture(scope="module")
def one_thread():
    """Small tensors: threads only wait for each other, above all beside other workers of the test suite."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def many(one_thread) -> Scenes:
    return render(seed=1, count=160, size=48)


def test_types_and_shapes():
    scenes = render(seed=0, count=3, size=20)
    assert (scenes.rgb.shape, scenes.rgb.dtype) == ((3, 3, 20, 20), torch.uint8)
    assert (scenes.semseg.shape, scenes.semseg.dtype) == ((3, 20, 20), torch.uint8)
    assert (scenes.depth.shape, scenes.depth.dtype) == ((3, 20, 20), torch.float32)
    assert (scenes.normals.shape, scenes.normals.dtype) == ((3, 3, 20, 20), torch.float32)
    assert (scenes.edges.shape, scenes.edges.dtype) == ((3, 20, 20), torch.bool)
    assert len(scenes) == 3


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 1, "size": 0}])
def test_nothing_to_render_is_an_error(wrong):
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]} is 0"):
        render(0, **wrong)


def test_same_bytes_whatever_is_rendered_beside():
    scenes = render(seed=5, count=9, size=40)
    assert digest(render(seed=5, count=9, size=40)) == digest(scenes)
    assert digest(render(seed=6, count=9, size=40)) != digest(scenes)
    for k in (0, 4, 8):
        one = Scenes(*(getattr(scenes, f.name)[k : k + 1] for f in fields(Scenes)))
        assert digest(render(seed=5, count=1, size=40, start=k)) == digest(one)


def test_same_bytes_with_any_number_of_threads():
    alone = digest(render(seed=2, count=2, size=70))
    try:
        torch.set_num_threads(2)
        assert digest(render(seed=2, count=2, size=70)) == alone
    finally:
        torch.set_num_threads(1)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    render(seed=0, count=1, size=8)
    assert torch.equal(torch.rand(2), expected)


def test_another_size_shows_the_same_room():
    coarse, fine = render(seed=7, count=4, size=40), render(seed=7, count=4, size=120)
    centres = (..., slice(1, None, 3), slice(1, None, 3))  # every third pixel of the finer picture has the same centre
    assert (coarse.semseg == fine.semseg[centres]).float().mean() > 0.999
    assert ((coarse.depth - fine.depth[centres]).abs() < 1e-4).float().mean() > 0.999
    assert torch.equal(coarse.focal, fine.focal)


def test_empty_room_in_closed_form():
    size = 33  # odd, so that the ray in the middle is parallel to an axis
    scenes = photograph([empty_room()], size, [(0, 0)])
    x, y = steps(size, 0.75)[None, :].expand(size, size), steps(size, 0.75)[:, None].expand(size, size)
    side, floor, ceiling = 2.0 / x.abs(), 1.2 / y.clamp(min=1e-12), 1.8 / (-y).clamp(min=1e-12)
    back = torch.full_like(side, 4.0)
    depth, which = torch.stack((side, floor, ceiling, back)).min(dim=0)
    assert scenes.depth.isfinite().all()
    torch.testing.assert_close(scenes.depth[0].double(), depth, rtol=1e-5, atol=1e-5)
    assert torch.equal(scenes.semseg[0], torch.tensor([Label.WALL, Label.FLOOR, Label.CEILING, Label.WALL])[which])
    assert scenes.semseg[0].unique().tolist() == [Label.FLOOR, Label.WALL, Label.CEILING]
    normal = torch.tensor([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])[which]
    normal[which == 0] = torch.stack((-x.sign(), 0 * x, 0 * x), dim=-1)[which == 0].float()
    torch.testing.assert_close(scenes.normals[0].movedim(0, -1), normal)
    changes = torch.zeros(size, size, dtype=torch.bool)
    changes[:, :-1] |= which.diff(dim=1) != 0
    changes[:-1] |= which.diff(dim=0) != 0
    assert scenes.edges.any()
    near_a_change = torch.nn.functional.max_pool2d(changes[None].float(), 3, stride=1, padding=1)[0] > 0
    assert not (scenes.edges[0] & ~near_a_change).any()


def test_ball_in_closed_form():
    ball = Solid(Ball((2.0, 1.2, 3.0), 0.5, GREY), 0, Label.BALL, CEILING + 1)
    size = 65
    scenes = photograph([empty_room(ball)], size, [(0, 0)])
    x, y = steps(size, 0.75)[None, :], steps(size, 0.75)[:, None]
    a = x**2 + y**2 + 1
    disc = 4 - a * (4 - 0.25)  # |z (x, y, 1) - (0, 0, 2)| = 0.5
    inside = disc > 1e-9
    depth = (2 - disc.clamp(min=0).sqrt()) / a
    assert torch.equal(scenes.semseg[0] == Label.BALL, inside)
    torch.testing.assert_close(scenes.depth[0].double()[inside], depth[inside], rtol=1e-4, atol=1e-4)
    point = unproject(scenes)[0]
    normal = (point - torch.tensor([0.0, 0.0, 2.0]).reshape(3, 1, 1)) / 0.5
    torch.testing.assert_close(scenes.normals[0].double()[:, inside], normal[:, inside], rtol=0, atol=2e-3)
    assert scenes.edges[0, :, size // 2].nonzero().flatten().numel() >= 2  # above and below
    assert not (scenes.edges[0] & (disc > 0.2)).any()  # smooth inside its outline


def test_turned_box_lies_where_it_should():
    yaw, c, s = 0.4, math.cos(0.4), math.sin(0.4)
    box = Solid(Box((2.0, 1.0, 3.0), (0.6, 0.7, 0.4), GREY), 1, Label.CABINET, CEILING + 1)
    scenes = photograph([empty_room(box, yaw=yaw)], 64, [(0, 0)])
    on_box = scenes.semseg[0] == Label.CABINET
    assert on_box.float().mean() > 0.1
    x, y, z = unproject(scenes)[0][:, on_box]
    x, y, z = x + 2.0 - 2.0, 1.2 - y - 1.0, z + 1.0 - 3.0  # from the box's centre, in the room's axes
    local = torch.stack((c * x - s * z, y, s * x + c * z)) / torch.tensor([0.6, 0.7, 0.4])[:, None]
    torch.testing.assert_close(local.abs().amax(dim=0), torch.ones_like(x), rtol=0, atol=1e-5)
    shown = scenes.normals[0][:, on_box].T
    for normal in ((-s, 0.0, -c), (c, 0.0, -s)):  # the front and the right side are all that is seen
        is_this = (shown - torch.tensor(normal)).norm(dim=1) < 1e-5
        assert is_this.any()
        shown = shown[~is_this]
    assert len(shown) == 0


def test_depth_and_normals_agree_on_flat_faces(many):
    point, normal = unproject(many), many.normals.double()
    across, down = point[..., 1:-1, 2:] - point[..., 1:-1, :-2], point[..., 2:, 1:-1] - point[..., :-2, 1:-1]
    measured = torch.nn.functional.normalize(torch.linalg.cross(down, across, dim=1), dim=1)
    middle = normal[..., 1:-1, 1:-1]
    rough = torch.nn.functional.max_pool2d(many.edges.float(), 3, stride=1)
    h, w = middle.shape[-2:]
    bent = torch.zeros(len(many), h, w, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            bent = torch.maximum(bent, (normal[..., i : i + h, j : j + w] - middle).norm(dim=1))
    even = (Label.FLOOR, Label.WALL, Label.CEILING, Label.TABLE)  # others have parallel faces less than an edge apart
    smooth = torch.isin(many.semseg[:, 1:-1, 1:-1], torch.tensor(even, dtype=torch.uint8))
    flat = (rough == 0) & (bent < 1e-6) & smooth
    assert flat.float().mean() > 0.4
    angle = torch.rad2deg(torch.acos((measured * middle).sum(dim=1).clamp(-1, 1)))[flat]
    assert (angle < 0.5).float().mean() > 0.998
    assert angle.median() < 0.02


def test_everything_is_finite_and_normals_are_unit_and_face_the_camera(many):
    assert many.depth.isfinite().all()
    assert many.depth.min() > 0.3
    assert many.depth.max() < 9
    torch.testing.assert_close(many.normals.norm(dim=1), torch.ones_like(many.depth))
    assert ((unproject(many) * many.normals.double()).sum(dim=1) < 1e-4).all()


def test_all_classes_appear_with_a_reasonable_share(many):
    pixels = torch.bincount(many.semseg.flatten().long(), minlength=len(Label)).double()
    share = pixels / pixels.sum()
    present = torch.tensor([(many.semseg == label).flatten(1).any(dim=1).float().mean() for label in Label])
    assert len(share) == len(Label) == 13
    assert share.min() > 0.004
    assert share.max() < 0.5
    assert present.min() > 0.3


def test_edges_are_thin_and_hold_every_change_of_class(many):
    share = many.edges.float().mean(dim=(1, 2))
    assert 0.08 < share.mean() < 0.25
    assert share.min() > 0.02
    window = torch.nn.functional.avg_pool2d(many.edges.float(), 3, stride=1)
    assert (window > 0.99).float().mean() < 0.005  # blocks without a gap
    for dim in (1, 2):
        end = many.semseg.shape[dim] - 1
        changes = many.semseg.narrow(dim, 0, end) != many.semseg.narrow(dim, 1, end)
        marked = many.edges.narrow(dim, 0, end) | many.edges.narrow(dim, 1, end)
        assert (marked | ~changes).all()


def test_pictures_are_well_exposed(many):
    mean, spread = many.rgb.float().flatten(1).mean(dim=1), many.rgb.float().flatten(1).std(dim=1)
    assert mean.min() > 50
    assert mean.max() < 180
    assert spread.min() > 15


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"instance": 1}, [1]),
        ({"depth": 0.5}, [2]),  # the pixel on the right is nearer
        ({"depth": 0.01}, []),
        ({"fold": True}, [1]),
        ({"instance": 1, "face": 0}, []),  # one face is one thing
    ],
)
def test_edges_between_two_pixels(change, expected):
    """A row of four pixels; the right half differs from the left as the case says."""
    right = torch.tensor([[[0, 0, 1, 1]]])
    depth = 3 - right * change.get("depth", 0.0)
    x = torch.arange(4.0).expand(1, 1, 4) * 0.01
    normal = torch.zeros(1, 3, 1, 4)
    normal[:, 2] = -1
    if change.get("fold"):
        normal[:, :, :, 2:] = torch.tensor([-1.0, 0.0, 0.0])[:, None, None]
    found = edges(
        right * change.get("face", 1),
        right * change.get("instance", 0),
        depth,
        normal,
        torch.stack((x, 0 * x, depth), 1),
    )
    assert found[0, 0].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("yaw", [0.0, 0.6])
def test_shadows(yaw):
    box = Solid(Box((2.0, 1.5, 2.5), (0.3, 0.1, 0.3), GREY), 1, Label.TABLE, CEILING + 1)
    c, s = math.cos(yaw), math.sin(yaw)
    light = torch.tensor([[2.0, 2.5, 2.5]])
    under = torch.tensor([[2.0, 0.0, 2.5], [2.0 + 0.5 * c, 0.0, 2.5 - 0.5 * s], [2.0, 1.7, 2.5], [3.5, 0.0, 2.5]])
    scene = geometry([empty_room(box, yaw=yaw)])
    assert visible(scene, light, under.T[None]).tolist() == [[False, False, True, True]]
    shade = replace(box, shape=replace(box.shape, casts=False))
    assert visible(geometry([empty_room(shade, yaw=yaw)]), light, under.T[None]).all()
    ball = replace(box, shape=Ball((2.0, 1.5, 2.5), 0.15, GREY))
    assert visible(geometry([empty_room(ball)]), light, under.T[None]).tolist() == [[False, True, True, True]]


def test_rays_have_their_depth_as_parameter():
    camera = aim((1.0, 1.4, 0.3), (2.5, 0.7, 4.0), roll=0.1)
    axes = torch.tensor(camera.axes, dtype=torch.float64)
    torch.testing.assert_close(axes @ axes.T, torch.eye(3, dtype=torch.float64))
    direction = rays(axes[None].float(), torch.tensor([camera.focal]), 16)
    torch.testing.assert_close(torch.einsum("c,bcp->bp", axes[2].float(), direction), torch.ones(1, 256))


def test_furniture_stays_in_its_room_and_off_the_camera():
    for k in range(60):
        layout = furnish(4, k)
        width, height, length = layout.room
        for solid in layout.solids:
            shape, yaw = solid.shape, layout.yaws[solid.frame]
            (x, y, z), (c, s) = shape.centre, (abs(math.cos(yaw)), abs(math.sin(yaw)))
            w, h, d = shape.half if isinstance(shape, Box) else (shape.radius,) * 3
            if isinstance(shape, Box):
                w, d = c * w + s * d, s * w + c * d
            assert x - w > -0.15
            assert x + w < width + 0.15
            assert z + d < length + 0.15
            assert y - h > -1e-6
            assert y + h < height + 1e-6
            assert math.hypot(x - layout.camera.position[0], z - layout.camera.position[2]) > 0.3


@pytest.fixture
def small_suite(tmp_path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path))
    calls = []
    made = suite(size=24, pretrain=36, train=4, test=3, progress=lambda done, total: calls.append((done, total)))
    return made, calls


def test_suite_has_disjoint_splits_in_compact_types(small_suite):
    made, calls = small_suite
    assert [task.name for task in made.tasks] == ["semseg", "depth", "normals", "edges"]
    assert [len(split) for split in (made.pretrain, made.train, made.test)] == [36, 4, 3]
    images = torch.cat([made.pretrain.images, made.train.images, made.test.images])
    assert len(images.flatten(1).unique(dim=0)) == 43
    types = {name: target.dtype for name, target in made.train.targets.items()}
    assert types == {"semseg": torch.uint8, "depth": torch.float16, "normals": torch.float16, "edges": torch.uint8}
    assert calls == sorted(calls)
    assert calls[-1] == (43, 43)
    assert torch.equal(made.train.images, render(1, 4, 24).rgb)


def test_suite_comes_from_the_cache_the_second_time(small_suite, monkeypatch):
    made, _ = small_suite
    monkeypatch.setattr(sys.modules[suite.__module__], "render", None)
    calls = []
    again = suite(size=24, pretrain=36, train=4, test=3, progress=lambda done, total: calls.append((done, total)))
    assert torch.equal(again.pretrain.images, made.pretrain.images)
    assert torch.equal(again.test.targets["normals"], made.test.targets["normals"])
    assert calls == [(36, 43), (40, 43), (43, 43)]


def test_the_truth_scores_best(small_suite):
    made, _ = small_suite
    batch = made.test.batch(slice(None))
    truth = {
        "semseg": 50 * torch.nn.functional.one_hot(batch["semseg"].long(), 13).movedim(-1, 1).float(),
        "depth": batch["depth"][:, None].float(),
        "normals": 3 * batch["normals"].float(),
        "edges": 100 * batch["edges"][:, None].float() - 50,
    }
    best = {"semseg": 100.0, "depth": 0.0, "normals": 0.0, "edges": 100.0}
    for task in made.tasks:
        assert truth[task.name].shape[1] == task.channels
        assert task.loss(truth[task.name], batch[task.name]) < 1e-3
        noise = torch.randn_like(truth[task.name]).requires_grad_()
        loss = task.loss(noise, batch[task.name])
        loss.backward()
        assert loss > 0.01
        metric = task.metric()
        metric.update(truth[task.name], batch[task.name])
        assert metric.compute().item() == pytest.approx(best[task.name], abs=0.03)
        assert metric.higher_is_better is (best[task.name] > 0)
