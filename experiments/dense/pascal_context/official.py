"""What is official about PASCAL-Context with five tasks: its splits, its classes, and where its normals count."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""In the order of PASCAL VOC."""

PARTS = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")

PART_OF = {
    **dict.fromkeys(
        ("hair", "head", "lear", "rear", "lebrow", "rebrow", "leye", "reye", "mouth", "nose"), PARTS.index("head")
    ),
    **dict.fromkeys(("torso", "neck"), PARTS.index("torso")),
    **dict.fromkeys(("luarm", "ruarm"), PARTS.index("upper arms")),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), PARTS.index("lower arms")),
    **dict.fromkeys(("luleg", "ruleg"), PARTS.index("upper legs")),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), PARTS.index("lower legs")),
}
"""Of the 24 parts of people that PASCAL-Part names, the class each belongs to."""

COUNTS = {"train": 4998, "test": 5105}
"""Images; the multi-task literature calls the 5,105 `val`."""

DIGESTS = {"train": "2da5ca32fd4ef15b", "test": "261199d190e5c22d"}
"""Of the official lists, as `digest` has it."""

CONTEXTS = 459
"""Classes of PASCAL-Context, from 1."""

_WITH_NORMALS = (
    3,
    4,
    6,
    9,
    10,
    11,
    13,
    15,
    17,
    18,
    22,
    23,
    29,
    30,
    33,
    34,
    36,
    37,
    38,
    39,
    41,
    43,
    46,
    49,
    50,
    51,
    53,
    55,
    56,
    59,
    61,
    62,
    65,
    66,
    68,
    69,
    72,
    73,
    78,
    83,
    84,
    85,
    87,
    88,
    95,
    96,
    101,
    104,
    105,
    107,
    111,
    113,
    115,
    122,
    124,
    135,
    141,
    142,
    143,
    146,
    150,
    154,
    157,
    158,
    159,
    165,
    172,
    174,
    181,
    183,
    184,
    191,
    193,
    195,
    197,
    199,
    202,
    213,
    215,
    216,
    219,
    220,
    223,
    225,
    228,
    230,
    232,
    233,
    238,
    239,
    242,
    243,
    246,
    250,
    251,
    252,
    255,
    260,
    261,
    263,
    269,
    272,
    273,
    275,
    281,
    283,
    284,
    285,
    286,
    287,
    288,
    290,
    291,
    292,
    293,
    295,
    304,
    307,
    309,
    310,
    314,
    315,
    319,
    323,
    329,
    330,
    331,
    336,
    342,
    345,
    349,
    350,
    351,
    352,
    355,
    357,
    368,
    370,
    371,
    374,
    379,
    380,
    383,
    384,
    397,
    401,
    403,
    405,
    407,
    408,
    411,
    412,
    413,
    414,
    417,
    419,
    421,
    423,
    427,
    429,
    430,
    431,
    432,
    440,
    441,
    442,
    443,
    444,
    446,
    454,
    457,
)
"""Those of the 459 whose name is one of NYUD-v2's 894, and tvmonitor: there the distilled normals are to be trusted."""

_BOUNDARIES = (
    "71144e06b1d4ddb36252d4e5b53155c50dc1fb189a37a7562d1ced032d48982d0a4291ca849cc6d71c40429938d2f0aa8649"
    "e4a1e61da48da5b4082731efa415bf97db6b03a05b3cf9abb52190dc122a1798cd05562dac93a528db696e9570884b781b38"
    "a51a72ea47a8e8647a5a6f95a74ab2a6a114c45dd5335ada409472b53a2b12074feb922691eb6445b3e64359e55682452762"
    "e2652d2821021cdc3e0b319866ebc65d762955eb5a237c9734dd5b24a03234bcaa5bea911831cafe8a2718d352b2d20b2adb"
    "3978e8d374474d9dba0a29cf060c153394eafdc409ccd5e9e068b156694a5f83bf744024bacb02ef8376a574d903d7c3a275"
    "ad49b6545b306cdf637d4d58b2350d9b69ade3612d029f88552b0bb5b1fd40d50af5386688e28980f4944daceb18c996ae45"
    "f26a906bad5b438575643d1501da248a24b9dc9b11d7579edec4762cbf37f4fabdd8b2150b945737f6359c66555cbfaae127"
    "0d35a442b4af55a35dd259142fd6d2deaa2ca9556021392d1e3a2d19099f188ece06b35654f6d46e4bc962d44704748933b8"
    "149e93aa22df2cd4484b34c8717d9b4aa74644b1aa666529ac359b5b4409a9626ae8bda85ca6e2216ac939aadaea509738b2"
    "cd5b9106c511cd6b400b1a3c50f8873244c776cf0fab456948bc6dd9ef8560dd9decd1512a586bf7f47b16f6d0953d99d45e"
    "47572df2ba5ebaa790922d90741662db3793fbddb11c60922280315e9aecc517a9ca6ad72583795a04ba999463ba0d65a8f2"
    "7d3752eadcdcc6c1af5e7a1f7da965a266e91f4655a4d36c2c8cf7fa5dd52d190f9514f2badc6ed2ce445669d4f2cbabf49c"
    "ecf69909d85edac46231842c06da15308532c2d16145102568a69e8aa0dd6350f85cd83abca000"
)
"""A bit for each official test image in the order of names, set where the boundary benchmark of InvPT counts it."""


def normals_count() -> np.ndarray:
    """Whether normals count on pixels of each context class, 0 to 459.

    >>> normals_count()[[0, 2, 284]]  # none, aeroplane, person
    array([False, False,  True])
    """
    counts = np.zeros(CONTEXTS + 1, bool)
    counts[list(_WITH_NORMALS)] = True
    return counts


def digest(names: Sequence[str]) -> str:
    """Of a list of names, whatever their order.

    >>> digest(["b", "a"]) == digest(["a", "b"])
    True
    """
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def boundary_images(test: Sequence[str]) -> tuple[str, ...]:
    """The 2,498 of the 5,105 test images on which the tables published with InvPT measure edges.

    Args:
        test: The official list.

    Raises:
        ValueError: It is not the official list, of whose other images nothing is known.
    """
    if digest(test) != DIGESTS["test"]:
        raise ValueError(
            f"test has {len(test)} images that are not the official {COUNTS['test']}: which of them the boundary benchmark "
            "counts is known of those alone. Get ImageSets/Context/val.txt again, or measure edges on all images."
        )
    ranked = sorted(test)
    counted = np.unpackbits(np.frombuffer(bytes.fromhex(_BOUNDARIES), np.uint8))[: len(ranked)]
    return tuple(name for name, of_it in zip(ranked, counted, strict=True) if of_it)
