"""Small copies of the 13-class set, in MTAN's folders and in parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nyud_copies import npy

COUNTS = {"train": 3, "val": 2}


def arrays(split: str, number: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Channels last, as MTAN's folders have them."""
    rng = np.random.default_rng(number + (100 if split == "val" else 0))
    label = rng.integers(-1, 13, size)
    label[0, :3] = (-1, 0, 12)
    depth = rng.uniform(0.5, 10, (*size, 1)).astype(np.float32)
    depth[0, 0] = 0
    normal = rng.normal(size=(*size, 3))
    normal = (normal / np.linalg.norm(normal, axis=2, keepdims=True)).astype(np.float32)
    normal[1, 1] = 0
    image = rng.random((*size, 3), dtype=np.float32)
    return {"image": image, "label": label, "depth": depth, "normal": normal}


def mtan_copy(root: Path, size: tuple[int, int] = (288, 384)) -> Path:
    for split, count in COUNTS.items():
        for number in range(count):
            for folder, values in arrays(split, number, size).items():
                npy(root / split / folder / f"{number}.npy", values)
    return root


def parquet_copy(root: Path, size: tuple[int, int] = (288, 384)) -> Path:
    (root / "data").mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            of = arrays(split, number, size)
            rows.append(
                {
                    "image": of["image"].transpose(2, 0, 1).tolist(),
                    "segmentation": of["label"].tolist(),
                    "depth": of["depth"].transpose(2, 0, 1).tolist(),
                    "normal": of["normal"].transpose(2, 0, 1).tolist(),
                    "noise": np.zeros((1, *size)).tolist(),
                }
            )
        planes, volumes = pa.list_(pa.list_(pa.int64())), pa.list_(pa.list_(pa.list_(pa.float32())))
        kinds = {"image": volumes, "segmentation": planes, "depth": volumes, "normal": volumes, "noise": volumes}
        table = pa.Table.from_pylist(rows, schema=pa.schema(kinds))
        pq.write_table(table.slice(0, 1), root / f"data/{split}-00000-of-00002-1234abcd.parquet")
        pq.write_table(table.slice(1), root / f"data/{split}-00001-of-00002-5678abcd.parquet")
    return root
