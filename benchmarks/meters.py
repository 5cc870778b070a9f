"""The meters by both protocols on the same predictions, odsF against an exact matcher, and what meters cost.

    python -m benchmarks.meters --data nyuv2_sample18.tar

writes results/meters.json and its tables in docs/meters.md, in two minutes of processor time. The archive holds 18 images of
NYUv2 (`depth_mm/*.png`, for eight of them `seg13/*.png`); what stands for a model's predictions is the truth at
a stride of 16 pixels, of 4 for edges, with smooth noise from a fixed seed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import re
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import KDTree
from torch import Tensor

from benchmarks.clock import CLOCK, in_turn
from dtme._files import write_text
from dtme.metrics import RMSE, DepthRMSE, L1Error, MaxF, MeanAngularError, MeanIoU, OptimalDatasetF
from dtme.metrics.edges.matching import count_at_thresholds, count_matches
from dtme.metrics.edges.suppression import suppress_non_maxima
from dtme.metrics.edges.thinning import thin

ROOT = Path(__file__).resolve().parents[1]
CROP = np.s_[45:470, 40:600]
"""What the field keeps of 480 x 640 pixels: 425 x 560."""
PADDING = (8, 8, 11, 12)
FOCAL = 519.0
BACKGROUND = (2, 4, 11)
"""Ceiling, floor and wall among the 13 classes; the rest stands for what is salient."""
TOLERANCE = 0.011
HUNDREDTHS = tuple(k / 100 for k in range(1, 100))
TESTED = (0, 5, 10, 20, 30, 50, 80)
"""Thresholds, by number, at which each image's matches are counted by other means, too."""
TOGETHER = (
    ("mIoU, 40 classes", "depth", "normals"),
    ("mIoU, 21 classes", "parts, 7 classes", "saliency", "normals"),
)
"""NYUD-v2's and PASCAL-Context's meters but for edges."""

IMAGES = 654
"""Of NYUD-v2's test split."""


def main() -> None:
    """Measure, and write results and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the archive")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    torch.manual_seed(0)
    targets = read(data)
    predictions = predict(targets)
    found = {
        "command": f"python -m benchmarks.meters --data {data.name}",
        "versions": {name: version(name) for name in ("dtme", "torch", "torchmetrics", "numba", "timm")},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "clock": CLOCK,
        "values": values(predictions, targets),
        "matching": matching(predictions["edges"], targets["edges"]),
        "cost": cost(),
    }
    write_text(ROOT / "results/meters.json", json.dumps(found, indent=1) + "\n")
    page = ROOT / "docs/meters.md"
    write_text(page, filled(page.read_text(encoding="utf-8"), found))
    print("\n\n".join(tables(found).values()))


def read(archive: Path) -> dict[str, Tensor]:
    """Every task's target for the 18 images, cropped and padded, unknown where nothing is known."""
    maps: dict[str, dict[str, np.ndarray]] = {"depth_mm": {}, "seg13": {}}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            kind, name = Path(member.name).parent.name, Path(member.name).stem
            if kind in maps and file is not None:
                maps[kind][name] = np.array(Image.open(io.BytesIO(file.read()), formats=("PNG",)))[CROP]
    nothing = np.zeros((425, 560), np.uint8)
    labels = (
        torch.from_numpy(np.stack([maps["seg13"].get(name, nothing) for name in sorted(maps["depth_mm"])])) - 1
    )  # 0, unknown, turns to 255
    depth = torch.from_numpy(
        np.stack([depth for _, depth in sorted(maps["depth_mm"].items())]).astype(np.float32) / 1000
    )
    edges = (_steps(depth.log()).norm(dim=1) > 0.05) | (_steps(labels.float()) != 0).any(1)
    salient = ~torch.isin(labels, torch.tensor(BACKGROUND, dtype=torch.uint8))
    slope = _steps(F.avg_pool2d(depth[:, None], 5, 1, 2)[:, 0]).flip(1) * FOCAL / depth[:, None]
    normals = F.normalize(torch.cat([slope, -torch.ones_like(depth)[:, None]], 1), dim=1)
    targets = {
        "semseg": (labels, 255),
        "depth": (depth, 0),
        "normals": (normals, 0),
        "saliency": (salient.to(torch.uint8).masked_fill(labels == 255, 255), 255),
        "edges": (edges.to(torch.uint8), 255),
        "euclidean": ((1 + 512 * depth).log() / math.log(2**16), math.nan),
    }
    return {task: F.pad(target, PADDING, value=unknown) for task, (target, unknown) in targets.items()}


def _steps(maps: Tensor) -> Tensor:
    """Differences to the next row and the next column."""
    down = F.pad(maps[:, 1:] - maps[:, :-1], (0, 0, 0, 1))
    right = F.pad(maps[..., 1:] - maps[..., :-1], (0, 1))
    return torch.stack([down, right], 1)


def predict(targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stands for a model's predictions."""
    labels = targets["semseg"]
    hot = F.one_hot(labels.masked_fill(labels == 255, 0).long(), 13).movedim(-1, 1).float()
    depth = targets["depth"].masked_fill(targets["depth"] == 0, 3.0)[:, None]
    return {
        "semseg": _coarse(5 * hot, 16, 1.0),
        "depth": _coarse(depth, 16, 0.6),
        "normals": _coarse(targets["normals"], 16, 0.3),
        "saliency": _coarse(4.0 * (targets["saliency"] == 1)[:, None] - 2, 16, 1.0),
        "edges": _coarse(12.0 * (targets["edges"] == 1)[:, None] - 4, 4, 1.2),
        "euclidean": _coarse(targets["euclidean"].nan_to_num(0.7)[:, None], 16, 0.02),
    }


def _coarse(maps: Tensor, stride: int, noise: float) -> Tensor:
    pooled = F.avg_pool2d(maps, stride)
    pooled = pooled + noise * torch.randn(pooled.shape, generator=torch.Generator().manual_seed(stride))
    return F.interpolate(pooled, size=maps.shape[2:], mode="bilinear", align_corners=False)


def values(predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Each measure by both protocols, in batches of four, of which the last has two images."""
    edges = {"tolerance": TOLERANCE}
    suppressed = {**edges, "thresholds": HUNDREDTHS, "nms": True}
    rows = [
        ("semseg, 13 classes", "semseg", MeanIoU, {"num_classes": 13}, "mIoU"),
        ("semseg, a head of 40 classes", "semseg", MeanIoU, {"num_classes": 40}, "mIoU"),
        ("depth", "depth", DepthRMSE, {}, "RMSE (m)"),
        ("normals", "normals", MeanAngularError, {}, "mErr (°)"),
        ("saliency", "saliency", MaxF, {}, "maxF"),
        ("edges", "edges", OptimalDatasetF, edges, "odsF"),
        ("edges, non-maxima suppressed, 99 thresholds", "edges", OptimalDatasetF, suppressed, "odsF"),
        ("Taskonomy's euclidean depth", "euclidean", L1Error, {}, "L1"),
        ("Taskonomy's euclidean depth", "euclidean", RMSE, {}, "RMSE"),
    ]
    found = []
    for name, task, kind, options, measure in rows:
        row: dict[str, Any] = {"task": name, "measure": measure}
        prediction, target = predictions[task], targets[task]
        if options.get("num_classes") == 40:
            prediction = F.pad(prediction, (0, 0, 0, 0, 0, 27), value=-9.0)
        for protocol in ("standard", "invpt"):
            metric = kind(**options, protocol=protocol)
            for some, true in zip(prediction.split(4), target.split(4), strict=True):
                metric.update(some, true)
            row[protocol], row[f"{protocol}_is"] = round(metric.compute().item(), 4), repr(metric)
        found.append(row)
    return found


def matching(prediction: Tensor, target: Tensor) -> dict[str, Any]:
    """How odsF's matches compare with the largest flow and with taking nearest pairs first, and how long an image takes."""
    seconds: dict[str, Any] = {}
    kinds = {
        "standard, 99 thresholds": OptimalDatasetF(tolerance=TOLERANCE, thresholds=HUNDREDTHS),
        "invpt, 101 thresholds": OptimalDatasetF(tolerance=TOLERANCE, protocol="invpt"),
    }
    taken = in_turn(
        {name: lambda metric=metric: metric.update(prediction, target) for name, metric in kinds.items()}, 3
    )
    for name in kinds:
        seconds[name] = round(taken.of(name) / len(target), 3)
    thresholds = kinds["invpt, 101 thresholds"].thresholds
    tested = exact = greedy = flow = 0
    for image, edges in zip(prediction[:, 0].sigmoid().numpy(), target.numpy(), strict=True):
        rows, columns = slice(PADDING[2], -PADDING[3]), slice(PADDING[0], -PADDING[1])
        true, kept = thin(edges[rows, columns] == 1), suppress_non_maxima(image[rows, columns], as_published=True)
        distance = TOLERANCE * math.hypot(*true.shape)
        levels = np.searchsorted(np.array(thresholds, np.float32), kept)
        _, matched = count_at_thresholds(levels, true, len(thresholds), distance)
        for k in TESTED:
            lines = thin(levels > k)
            largest = largest_flow(lines, true, distance)
            tested, exact = tested + 1, exact + int(matched[k] == count_matches(lines, true, distance) == largest)
            flow, greedy = flow + largest, greedy + nearest_first(lines, true, distance)
    return {
        "seconds_per_image": seconds,
        f"minutes_for_{IMAGES}_images": {name: round(value * IMAGES / 60, 1) for name, value in seconds.items()},
        "graphs": tested,
        "graphs_as_large_as_the_largest_flow": exact,
        "share_found_by_nearest_first": round(greedy / flow, 4),
    }


def largest_flow(predicted: np.ndarray, true: np.ndarray, distance: float) -> int:
    """The largest one-to-one matching, by Dinic's algorithm."""
    places, others = np.argwhere(predicted), np.argwhere(true)
    n, m = len(places), len(others)
    pairs = KDTree(places).sparse_distance_matrix(KDTree(others), distance, output_type="coo_matrix")
    tails = np.concatenate([np.full(n, n + m), pairs.row, n + np.arange(m)])
    heads = np.concatenate([np.arange(n), n + pairs.col, np.full(m, n + m + 1)])
    network = csr_array((np.ones(len(tails), np.int32), (tails, heads)), shape=(n + m + 2, n + m + 2))
    return int(maximum_flow(network, n + m, n + m + 1).flow_value)


def nearest_first(predicted: np.ndarray, true: np.ndarray, distance: float) -> int:
    """Matches if the nearest pair of all that are left is taken each time."""
    places, others = KDTree(np.argwhere(predicted)), KDTree(np.argwhere(true))
    pairs = places.sparse_distance_matrix(others, distance, output_type="coo_matrix")
    taken, given = np.zeros(places.n, bool), np.zeros(others.n, bool)
    for i in np.argsort(pairs.data, kind="stable"):
        if not taken[pairs.row[i]] and not given[pairs.col[i]]:
            taken[pairs.row[i]] = given[pairs.col[i]] = True
    return int(taken.sum())


def cost() -> dict[str, Any]:
    """Seconds of a batch of six at 448 x 576, and of its forward pass through a ViT-B/16."""
    b, h, w = 6, 448, 576
    model = timm.create_model("vit_base_patch16_384", img_size=(h, w)).eval()
    images = torch.randn(b, 3, h, w)
    real, two = torch.rand(b, h, w), torch.randint(2, (b, h, w)).to(torch.uint8)
    meters = {
        "mIoU, 40 classes": (MeanIoU(40), torch.randn(b, 40, h, w), torch.randint(40, (b, h, w)).to(torch.uint8)),
        "mIoU, 21 classes": (MeanIoU(21), torch.randn(b, 21, h, w), torch.randint(21, (b, h, w)).to(torch.uint8)),
        "parts, 7 classes": (MeanIoU(7), torch.randn(b, 7, h, w), torch.randint(7, (b, h, w)).to(torch.uint8)),
        "depth": (DepthRMSE(), torch.randn(b, 1, h, w), real),
        "normals": (MeanAngularError(), torch.randn(b, 3, h, w), F.normalize(torch.randn(b, 3, h, w), dim=1)),
        "saliency": (MaxF(), torch.randn(b, 1, h, w), two),
        "L1, 3 channels": (L1Error(), torch.randn(b, 3, h, w), torch.randn(b, 3, h, w)),
        "RMSE, 2 channels": (RMSE(), torch.randn(b, 2, h, w), torch.randn(b, 2, h, w)),
    }
    works: dict[str, Any] = {
        name: lambda metric=metric, some=some, true=true: metric.update(some, true)
        for name, (metric, some, true) in meters.items()
    }
    with torch.inference_mode():
        taken = in_turn({"forward": lambda: model(images), **works}, 3)
    ratios = {name: round(taken.ratio(name, "forward").value, 4) for name in works}
    return {"forward_seconds": round(taken.of("forward"), 1), "share_of_the_forward_pass": ratios}


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The page's tables, by name."""
    rows = [f"| {row['task']} | {row['measure']} | {row['standard']:g} | {row['invpt']:g} |" for row in found["values"]]
    match = found["matching"]
    spent = [
        f"| {name} | {seconds:g} | {match[f'minutes_for_{IMAGES}_images'][name]:g} |"
        for name, seconds in match["seconds_per_image"].items()
    ]
    share = found["cost"]["share_of_the_forward_pass"]
    sums = {f"together: {', '.join(names)}": sum(share[name] for name in names) for names in TOGETHER}
    shares = [f"| {name} | {100 * part:.1f} |" for name, part in {**share, **sums}.items()]
    return {
        "values": "\n".join(["| task | measure | standard | invpt |", "| --- | --- | --: | --: |", *rows]),
        "matching": "\n".join(
            [
                f"| odsF | seconds an image | minutes for {IMAGES} images |",
                "| --- | --: | --: |",
                *spent,
                "",
                f"Held against the largest flow at {len(TESTED)} thresholds of each image, {match['graphs']} graphs: as many",
                f"matches in {match['graphs_as_large_as_the_largest_flow']} of them. Taking the nearest pairs first would find",
                f"{100 * match['share_found_by_nearest_first']:.1f} % of the matches.",
            ]
        ),
        "cost": "\n".join(["| meter | % of the forward pass |", "| --- | --: |", *shares]),
    }


def filled(page: str, found: dict[str, Any]) -> str:
    """The page with its tables made anew."""
    for name, table in tables(found).items():
        page = re.sub(
            rf"(<!-- meters: {name} -->\n).*?(<!-- end of table -->)",
            lambda place, table=table: f"{place[1]}\n{table}\n\n{place[2]}",
            page,
            flags=re.DOTALL,
        )
    return page


if __name__ == "__main__":
    main()
