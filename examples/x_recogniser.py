"""The lecture's X recogniser: find the parts of an X, then pool, and see that a distorted X keeps them.

python examples/x_recogniser.py
"""

import numpy as np

import fastconv

X = """
. . . . . . . . .
. # . . . . . # .
. . # . . . # . .
. . . # . # . . .
. . . . # . . . .
. . . # . # . . .
. . # . . . # . .
. # . . . . . # .
. . . . . . . . .
"""
DISTORTED = """
. . . . . . . . .
. # . . . . # . .
. . # . . # . . .
. . # . # . . . .
. . . # # . . . .
. . . # . # . . .
. . # . . . # . .
. # . . . . # . .
. . . . . . . . .
"""
PARTS = {
    "falling stroke": "# . . / . # . / . . #",
    "crossing": "# . # / . # . / # . #",
    "rising stroke": ". . # / . # . / # . .",
}


def picture(text: str) -> np.ndarray:
    """One channel of ±1: '#' is 1, '.' is -1."""
    rows = text.replace("/", "\n").strip().splitlines()
    return np.array([[[1 if c == "#" else -1 for c in row.split()] for row in rows]], np.float32)


def main() -> None:
    x, distorted = picture(X), picture(DISTORTED)
    filters = np.stack([picture(part) for part in PARTS.values()])
    print(f"pixels that differ: {int((x != distorted).sum())} of {x.size}")
    for title, image in (("X", x), ("distorted X", distorted)):
        maps = fastconv.conv2d(image, filters, activation="relu")
        pooled = fastconv.max_pool2d(maps, 2, stride=2, ceil_mode=True)
        for name, feature_map, small in zip(PARTS, maps, pooled, strict=True):
            print(f"{title:<12} {name:<15} best match {feature_map.max():.0f} of 9, after pooling:")
            print("\n".join("    " + " ".join(f"{v:2.0f}" for v in row) for row in small))


if __name__ == "__main__":
    main()
