from __future__ import annotations

import io
import json
import math
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.dense.nuclei import archive, suite, targets, tiles
from experiments.dense.nuclei.metrics import DistanceRMSE, MaskDice
from experiments.dense.suite import normalise

TAR = Path(__file__).parents[5] / "shared" / "data" / "dsb2018_nuclei.tar"
SHAPES = {
    "a": (128, 128),
    "b": (130, 301),
    "c": (257, 129),
    "d": (640, 512),
    "e": (128, 256),
    "v": (128, 128),
    "t": (260, 347),
}
SPLITS = {"train": ["a", "b", "c", "d", "e"], "val": ["v"], "test": ["t"]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))


def encode(picture: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


def squares(height: int, width: int) -> np.ndarray:
    """An instance map of squares of 20 pixels, 12 apart, with 16-bit numbers."""
    rows, columns = np.indices((height, width))
    inside = (rows % 32 < 20) & (columns % 32 < 20)
    return np.where(inside, 300 + rows // 32 * 100 + columns // 32, 0).astype(np.uint16)


def pictures() -> dict[str, bytes]:
    files = {"splits.json": json.dumps(SPLITS).encode()}
    for index, (name, (height, width)) in enumerate(SHAPES.items()):
        # Every picture has its own green, which tells later where a tile comes from.
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0], image[..., 1] = 255, 30 * index
        files[f"images/{name}.jpg"] = encode(image, "PNG")  # decoded by content, so lossless here
        files[f"instances/{name}.png"] = encode(squares(height, width), "PNG")
    return files


def pack(path: Path, files: dict[str, bytes], root: str = "dsb2018/") -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(root + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def tar(tmp_path) -> Path:
    return pack(tmp_path / "nuclei.tar", pictures())


# --- targets ---


def literal_distances(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps = np.zeros((2, *instances.shape))
    for number in set(instances.ravel()) - {0}:
        pixels = [place for place in np.ndindex(*instances.shape) if instances[place] == number]
        for axis, out in ((1, maps[0]), (0, maps[1])):
            centre = math.fsum(place[axis] for place in pixels) / len(pixels)
            left = max((centre - place[axis] for place in pixels), default=0)
            right = max((place[axis] - centre for place in pixels), default=0)
            for place in pixels:
                offset = place[axis] - centre
                if offset:
                    out[place] = offset / (left if offset < 0 else right)
    return maps[0], maps[1]


def blobs(seed: int) -> np.ndarray:
    """Overlapping ellipses with gaps in their numbering, some cut by the border, some in pieces."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((23, 31))
    instances = np.zeros((23, 31), np.int32)
    for number in rng.choice(1000, 7, replace=False) + 1:
        (r, c), (a, b) = rng.uniform(0, (23, 31)), rng.uniform(1, 8, 2)
        instances[((rows - r) / a) ** 2 + ((columns - c) / b) ** 2 <= 1] = number
    return instances


@pytest.mark.parametrize("seed", range(5))
def test_distance_maps_are_those_of_a_loop_over_pixels(seed):
    instances = blobs(seed)
    assert len(np.unique(instances)) > 3
    for fast, literal in zip(targets.distance_maps(instances), literal_distances(instances), strict=True):
        assert fast.dtype == np.float32
        np.testing.assert_allclose(fast, literal, atol=1e-6)
        assert fast.min() == -1
        assert fast.max() == 1


def test_distance_maps_without_nuclei_and_of_a_single_pixel():
    instances = np.zeros((4, 5), np.int32)
    assert not np.any(targets.distance_maps(instances))
    instances[2, 3] = 9
    assert not np.any(targets.distance_maps(instances))


def test_boundary_of_two_squares_that_touch():
    instances = np.zeros((7, 10), np.int32)
    instances[1:6, 0:5] = 4  # at the picture's left border, which is no boundary
    instances[1:6, 5:9] = 2
    expected = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
            [0, 0, 0, 0, 1, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 1, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 1, 1, 0, 0, 1, 0],
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]
    )
    np.testing.assert_array_equal(targets.boundary(instances), expected)
    np.testing.assert_array_equal(targets.mask(instances), instances > 0)


# --- tiles ---


@pytest.mark.parametrize(("shape", "size"), [((257, 347), 64), ((131, 1001), 64), ((128, 128), 16), ((300, 200), 100)])
def test_tiles_of_odd_pictures_lie_inside_and_apart(shape, size):
    instances = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    image = np.stack([instances % 251] * 3, -1).astype(np.uint8)
    small, numbers = tiles.scale(image, instances, size)
    assert small.shape[:2] == numbers.shape == tuple(length * size // 128 for length in shape)
    assert np.isin(numbers, instances).all()
    where = tiles.corners(*numbers.shape, size)
    assert len(where) == min(tiles.TILES, (shape[0] // 128) * (shape[1] // 128))
    cut = tiles.cut(numbers, where, size)
    assert cut.shape == (len(where), size, size)
    assert len(np.unique(cut)) == cut.size  # no pixel is in two tiles


def test_scaling_to_half_averages_the_image_and_keeps_numbers_in_place():
    instances = np.repeat(np.repeat(np.arange(64 * 64).reshape(64, 64), 2, 0), 2, 1).astype(np.int32)
    image = np.zeros((128, 128, 3), np.uint8)
    image[::2] = 200
    small, numbers = tiles.scale(image, instances, 64)
    np.testing.assert_array_equal(numbers, np.arange(64 * 64).reshape(64, 64))
    assert (small == 100).all()


def test_stretching_is_bounded_and_keeps_colours():
    flat = np.full((8, 8, 3), 7, np.uint8)
    flat[0, 0] = 9
    assert tiles.stretch(flat).max() <= 8 * 2
    dim = np.zeros((8, 8, 3), np.uint8)
    dim[:4] = (40, 20, 10)
    np.testing.assert_allclose(tiles.stretch(dim)[0, 0], (255, 127, 63), atol=1)


# --- metrics ---


def test_dice_and_distance_error_by_hand_over_batches():
    dice = MaskDice()
    dice.update(torch.tensor([[[[1.0, -1.0, 2.0]]]]), torch.tensor([[[1, 1, 0]]], dtype=torch.uint8))
    dice.update(torch.tensor([[[5.0]]]), torch.tensor([[[1]]]))
    assert dice.compute().item() == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    error = DistanceRMSE()
    error.update(torch.tensor([[[[5.0, 0.0]]]]), torch.tensor([[[0.0, 0.5]]], dtype=torch.float16))
    error.update(torch.tensor([[[-1.0, 0.0]]]), torch.tensor([[[-1.0, 1.0]]]))
    assert error.compute().item() == pytest.approx(math.sqrt((0.25 + 0 + 1) / 3))
    assert dice.higher_is_better
    assert not error.higher_is_better


# --- the suite ---


def test_suite_from_a_small_tar(tar):
    seen = []
    made = suite(tar, size=32, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]
    assert [task.name for task in made.tasks] == ["mask", "boundary", "horizontal", "vertical"]
    assert made.val is not None
    splits = (made.pretrain, made.train, made.test, made.val)
    assert sum(map(len, splits[:3])) == 1 + 2 + 2 + 8 + 2 + 4
    for split in splits:
        assert split.images.shape == (len(split), 3, 32, 32)
        assert split.images.dtype == torch.uint8
        assert set(split.targets) == {task.name for task in made.tasks}
        nucleus = split.targets["mask"] == 1
        assert nucleus.any()
        assert not nucleus.all()
        assert not split.targets["boundary"][~nucleus].any()
        for task in made.tasks:
            target = split.targets[task.name]
            assert target.shape == (len(split), 32, 32)
            assert not target[~nucleus].any()


def test_no_picture_is_in_two_splits(tar):
    made = suite(tar, size=32)
    greens = [set(split.images[:, 1].flatten().tolist()) for split in (made.pretrain, made.train, made.test)]
    assert [len(some) for some in greens] == [1, 4, 1]
    assert len(set.union(*greens)) == 6


def test_targets_of_a_tile_are_computed_from_the_whole_picture(tar):
    made = suite(tar, size=64)
    image, instances = archive.read(tar).picture("t")
    _, small = tiles.scale(image, instances, 64)
    row, column = tiles.corners(*small.shape, 64)[0]
    horizontal, _ = literal_distances(small[: 64 + row + 16, : 64 + column + 16])
    np.testing.assert_allclose(
        made.test.targets["horizontal"][0].numpy(), horizontal[row : row + 64, column : column + 64], atol=1e-3
    )


def test_perfect_predictions_score_perfectly_and_losses_take_the_targets(tar):
    made = suite(tar, size=32)
    batch = made.test.batch(slice(0, 3))
    torch.testing.assert_close(batch["image"], normalise(made.test.images[:3]))
    for task, best in zip(made.tasks, (100, 100, 0, 0), strict=True):
        target = batch[task.name]
        perfect = (40 * (target.float() - 0.5) if best else target.float())[:, None]
        metric = task.metric()
        metric.update(perfect, target)
        assert metric.compute().item() == pytest.approx(best)
        assert metric.higher_is_better is (best == 100)
        assert 0 <= task.loss(perfect, target).item() < 1e-6
        assert task.loss(1 - perfect, target).item() > 0.1


def test_second_time_comes_from_the_cache_whether_packed_or_not(tar, tmp_path):
    first = suite(tar, size=32)
    with tarfile.open(tar) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    again = []
    for data in (tar, tmp_path / "unpacked", tmp_path / "unpacked" / "dsb2018"):
        second = suite(data, size=32, progress=lambda *counts: again.append(counts))
        assert torch.equal(first.train.images, second.train.images)
    assert not again
    suite(tar, size=32, seed=1, progress=lambda *counts: again.append(counts))
    assert again


def test_seed_decides_which_pictures_are_for_pretraining():
    names = [f"picture{i}" for i in range(100)]
    divide = sys.modules["experiments.dense.nuclei.suite"].divide
    pretrain, train = divide(names, seed=0)
    assert len(pretrain) == 25
    assert sorted(pretrain + train) == sorted(names)
    assert divide(names[::-1], seed=0) == (pretrain, train)
    assert divide(names, seed=1) != (pretrain, train)


# --- bad input ---


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.tar does not exist; pass the path of dsb2018_nuclei.tar"):
        suite(tmp_path / "absent.tar")


def test_no_tar(tmp_path):
    (tmp_path / "text.tar").write_text("no tar at all\n" * 100)
    with pytest.raises(ValueError, match=r"text.tar is no readable tar .*; pass the path"):
        suite(tmp_path / "text.tar")


def test_truncated_tar(tar):
    tar.write_bytes(tar.read_bytes()[:-20000])
    with pytest.raises(ValueError, match=r"is no readable tar .*unexpected end of data"):
        suite(tar)


@pytest.mark.parametrize("name", ["/etc/splits.json", "dsb2018/../../splits.json"])
def test_names_outside_the_folder(tmp_path, name):
    data = pack(tmp_path / "evil.tar", {name: b"{}"}, root="")
    with pytest.raises(ValueError, match=r"evil.tar names a member .* outside its own folder"):
        suite(data)


def test_links_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("dsb2018/splits.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(FileNotFoundError, match=r"holds 0 files called splits.json"):
        suite(tmp_path / "link.tar")


def test_folder_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds 0 files called splits.json, one is needed; pass the path"):
        suite(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images/b.jpg": None}, r"nuclei.tar lacks images/b.jpg, .*add it"),
        ({"instances/b.png": None}, r"nuclei.tar lacks instances/b.png, .*add it"),
        (
            {"images/b.jpg": b"\xff\xd8 no picture"},
            r"images/b.jpg in .*nuclei.tar cannot be decoded .*get the file again",
        ),
        ({"instances/b.png": pictures()["instances/b.png"][:200]}, r"instances/b.png in .* cannot be decoded"),
        ({"instances/b.png": encode(squares(130, 300), "PNG")}, r"b.png .* has shape \(130, 300\).*has \(130, 301\)"),
        ({"instances/b.png": encode(np.zeros((130, 301, 3), np.uint8), "PNG")}, r"instance map is one channel"),
        ({"splits.json": b"{nothing"}, r"splits.json in .*nuclei.tar is no JSON object"),
        ({"splits.json": b"[1]"}, r"splits.json in .*nuclei.tar is no JSON object"),
        ({"splits.json": b'{"train": ["a"]}'}, r"names no pictures under 'test'"),
        ({"splits.json": b'{"train": ["a", "b"], "test": ["b"]}'}, r"names 'b' twice"),
        ({"splits.json": b'{"train": ["a"], "test": ["b"]}'}, r"names 1 training pictures, too few"),
    ],
)
def test_bad_members(tmp_path, change, message):
    files = {name: content for name, content in (pictures() | change).items() if content is not None}
    with pytest.raises(ValueError, match=message):
        suite(pack(tmp_path / "nuclei.tar", files), size=32)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_picture_smaller_than_a_tile(tmp_path):
    small = {
        "images/b.jpg": encode(np.zeros((100, 200, 3), np.uint8), "JPEG"),
        "instances/b.png": encode(squares(100, 200), "PNG"),
    }
    with pytest.raises(ValueError, match=r"images/b.jpg in .* is 100 x 200, smaller than the 128 x 128"):
        suite(pack(tmp_path / "nuclei.tar", pictures() | small))


@pytest.mark.parametrize("size", [0, 15, 129])
def test_size_out_of_range(tar, size):
    with pytest.raises(ValueError, match=f"size must be between 16 and 128.* not {size}"):
        suite(tar, size=size)


# --- the real archive ---


@pytest.mark.skipif(not TAR.exists(), reason=f"the real archive {TAR.name} is not in ../shared/data")
def test_real_archive():
    made = suite(TAR)
    assert (len(made.pretrain), len(made.train), len(made.test)) == (672, 1852, 284)
    for split in (made.pretrain, made.train, made.test):
        nucleus, boundary = split.targets["mask"] == 1, split.targets["boundary"] == 1
        assert 0.10 < nucleus.float().mean() < 0.20
        assert 0.02 < boundary.float().mean() < 0.06
        assert not (boundary & ~nucleus).any()
        for axis in ("horizontal", "vertical"):
            distance = split.targets[axis].float()
            assert not distance[~nucleus].any()
            assert distance.abs().max() == 1
            assert abs(distance[nucleus].mean()) < 0.05  # as far to one side as to the other
            # Only a pixel on its nucleus's centre line is as good as background to the metric.
            assert (distance[nucleus] == 0).float().mean() < 0.01
