"""Portraits composed of named parts: the causes of every picture are known, and can be read back.

A portrait has a background, a body of a colour, a pattern on it, a head, glasses and a hat. The
variants of each are drawn in parts.yaml. Layers are laid over each other in the final size, so that
`render` and `read_parts` agree to the last bit.

N      portraits
parts  [N, 6]: the index of the variant of each of FAMILIES
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml

from journey.engine.checks import require, require_count, require_seed, require_within
from journey.engine.spec import omitted_default
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Dataset

DRAWINGS_FILE = Path(__file__).with_suffix(".yaml")
DRAWINGS = yaml.safe_load(DRAWINGS_FILE.read_text())
FAMILIES = {
    name: tuple(DRAWINGS[name])
    for name in ("background", "body", "pattern", "head", "glasses", "hat")
}
"""The names of all variants."""
HEADS = (*FAMILIES["head"], *DRAWINGS["new_head"])  # with those that default data sets do not have
SIZES = tuple(map(len, FAMILIES.values()))
HEAD, HAT = list(FAMILIES).index("head"), list(FAMILIES).index("hat")
HEAD_LAYER = 2  # among the layers
NUM_RARE = 2  # variants of each family, the last ones
UNSEEN = 8  # one in so many pairs of head and hat is in no training image
NUM_HELD_OUT = 1000  # half of them with such pairs
SUBPIXELS = 8  # per pixel and axis
SWEEPS = 5  # of coordinate descent, at most

Layer = tuple[np.ndarray, np.ndarray]
"""Colours in [0, 1] times coverage [variants, 3, H, W], and coverage [variants, 1, H, W]."""


def _draw(shapes: list[str], size: int) -> np.ndarray:
    """Return colours times coverage, and coverage [4, size, size], of shapes in parts.yaml."""
    from PIL import Image, ImageDraw

    side = size * SUBPIXELS
    picture = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(picture)
    for shape in shapes:
        name, *words = shape.removeprefix("pair ").split()
        if name == "gradient":
            top, bottom, first, last = words
            bands = np.linspace(float(top), float(bottom), round(float(bottom) - float(top)) + 1)
            shares = (bands[:-1] - bands[0]) / (bands[-1] - bands[0])
            for above, below, share in zip(bands[:-1], bands[1:], shares, strict=True):
                colour = (1 - share) * _rgb(first) + share * _rgb(last)
                corners = np.array([0, above, 32, below]) * side / 32
                draw.rectangle(corners.tolist(), fill=tuple(np.rint(colour * 255).astype(int)))
            continue
        corners = _outline(name, [float(word) for word in words[:-1]])
        fill = "#" + DRAWINGS["colours"].get(words[-1], words[-1])
        draw.polygon((corners * side / 32).ravel().tolist(), fill=fill)
        if shape.startswith("pair "):
            mirrored = corners * [-1, 1] + [32, 0]
            draw.polygon((mirrored * side / 32).ravel().tolist(), fill=fill)
    pixels = np.asarray(picture, np.float64).transpose(2, 0, 1) / 255
    pixels = pixels * np.concatenate([pixels[3:].repeat(3, 0), np.ones_like(pixels[3:])])
    return pixels.reshape(4, size, SUBPIXELS, size, SUBPIXELS).mean((2, 4))


def _outline(name: str, values: list[float]) -> np.ndarray:
    """Return the corners [n, 2] of a shape."""
    if name == "polygon":
        return np.reshape(values, (-1, 2))
    if name == "disc":
        x, y, radius = values
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
    else:
        left, top, right, bottom = values
    if name == "box":
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if name == "dome":  # the upper half of an oval of twice the height
        bottom += bottom - top
    angles = np.linspace(np.pi, (2 if name == "dome" else 3) * np.pi, 96)
    xs = (left + right + (right - left) * np.cos(angles)) / 2
    ys = (top + bottom + (bottom - top) * np.sin(angles)) / 2
    return np.stack([xs, ys], 1)


@cache
def layers(size: int) -> tuple[Layer, ...]:
    """Return background, body, head, glasses and hat in a size, from back to front.

    Variant i of the body with pattern j is i · (number of patterns) + j.
    """

    def variants(family: str) -> Layer:
        drawings = DRAWINGS[family]
        if family == "head":
            drawings = drawings | DRAWINGS["new_head"]
        drawn = np.stack([_draw(shapes, size) for shapes in drawings.values()])
        return drawn[:, :3], drawn[:, 3:]

    _, pattern = variants("pattern")
    colours = np.array([list(map(_rgb, pair.split())) for pair in DRAWINGS["body"].values()])
    below, above = colours.transpose(1, 0, 2)[:, :, None, :, None, None]  # [bodies, 1, 3, 1, 1]
    dressed = (below * (1 - pattern) + above * pattern).reshape(-1, 3, size, size)
    silhouette = _draw(DRAWINGS["silhouette"], size)[3]
    coverage = np.broadcast_to(silhouette, (len(dressed), 1, size, size))
    body = dressed * coverage, coverage
    others = [variants(name) for name in ("head", "glasses", "hat")]
    return variants("background"), body, *others


def _rgb(colour: str) -> np.ndarray:
    """Return red, green and blue in [0, 1] of a colour in parts.yaml."""
    digits = DRAWINGS["colours"].get(colour, colour)
    return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255


def render(parts: np.ndarray, size: int = 32) -> np.ndarray:
    """Return the portraits of parts [N, 6], float64 [N, 3, size, size] in [0, 1]."""
    picture = np.zeros((len(parts), 3, size, size))
    for (colours, coverage), variant in zip(layers(size), _variants(parts).T, strict=True):
        picture = picture * (1 - coverage[variant]) + colours[variant]
    return picture


def _variants(parts: np.ndarray) -> np.ndarray:
    """Return the variants of layers [N, 5] of parts [N, 6]."""
    background, body, pattern, *others = parts.T
    return np.stack([background, body * len(FAMILIES["pattern"]) + pattern, *others], 1)


def read_parts(pictures: np.ndarray, new_heads: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts whose portrait is nearest to each picture, by coordinate descent.

    One layer after the other takes the variant of the least squared distance, until none changes.
    Portraits themselves are read without error (tested).

    Args:
        pictures: [N, 3, H, H] in [0, 1].
        new_heads: Whether the heads that default data sets do not have are read, too.

    Returns:
        Parts [N, 6], and the root mean square of the difference to their portrait [N].
    """
    all_layers = list(layers(pictures.shape[-1]))
    if not new_heads:
        colours, coverage = all_layers[HEAD_LAYER]
        num_heads = len(FAMILIES["head"])
        all_layers[HEAD_LAYER] = colours[:num_heads], coverage[:num_heads]
    variants, errors = np.zeros((len(pictures), len(all_layers)), np.int64), np.empty(len(pictures))
    for variant, picture, i in zip(variants, pictures, range(len(pictures)), strict=True):
        for _ in range(SWEEPS):
            before = variant.copy()
            for layer, (colours, coverage) in enumerate(all_layers):
                behind, in_front, transmitted = 0.0, 0.0, 1.0
                for other, (other_colours, other_coverage) in enumerate(all_layers):
                    colour, covered = other_colours[variant[other]], other_coverage[variant[other]]
                    if other < layer:
                        behind = behind * (1 - covered) + colour
                    elif other > layer:
                        in_front = in_front * (1 - covered) + colour
                        transmitted = transmitted * (1 - covered)
                candidates = in_front + transmitted * (colours + (1 - coverage) * behind)
                distances = np.square(candidates - picture).mean((1, 2, 3))
                variant[layer] = distances.argmin()
            if (variant == before).all():
                break
        errors[i] = np.sqrt(distances.min())
    background, body, *others = variants.T
    return np.stack([background, *np.divmod(body, len(FAMILIES["pattern"])), *others], 1), errors


def portrait_parts(where: str, images: ImageSet) -> np.ndarray:
    """Return the parts of portraits [N, 6], which their ids name.

    Raises:
        ConfigError: There are other images. The message begins with `where`.
    """
    prefix, parts = f"{Parts.name}/", []
    portraits = all(name.startswith(prefix) for name in images.ids)
    require(portraits, where, "parts", "classes unless dataset=parts")
    for name in images.ids:
        parts.append([int(part) for part in name.split("/")[1].split("-")])
    return np.array(parts)


def caption(parts: np.ndarray) -> str:
    """Return what the parts [6] show, as in "a cat in a striped red shirt, with a top hat, …"."""
    background, body, pattern, head, glasses, hat = (
        names[variant]
        for names, variant in zip((FAMILIES | {"head": HEADS}).values(), parts, strict=True)
    )
    worn = " and ".join(filter(None, (glasses, hat)))
    article = "an" if head[0] in "aeiou" else "a"
    shirt = f"{article} {head} in a {pattern} {body} shirt"
    return f"{shirt}{' with ' * bool(worn)}{worn}, {background}"


@dataclass
class Parts(Dataset):
    """Portraits composed of named parts, in colour, captioned by them and labelled by their head.

    Every eighth pair of head and hat is in no training image, and in half of the held-out ones.
    """

    name: ClassVar[str] = "parts"
    licence: ClassVar[str] = "that of this program, which draws them"
    num_train: int = 4000  # training images
    size: int = 32  # height and width
    rare: float = 0.1  # frequency of the last two variants of each part, relative to the others
    near_duplicates: float = 0.0  # fraction of training images that repeat another but for one part
    seed: int = 0  # of the parts
    # The head of every portrait; "": each has one of the heads that are not new.
    head: str = omitted_default("")

    @property
    def label(self) -> str:
        return f"parts{self.num_train}-{self.size}px{self.head and '-'}{self.head}"

    def check(self, where: str) -> None:
        require_count(f"{where}.num_train", self.num_train, most=100_000)
        require_count(f"{where}.size", self.size, least=16, most=128)
        require_within(f"{where}.rare", self.rare, 0, 1)
        require_within(f"{where}.near_duplicates", self.near_duplicates, 0, 0.5)
        require_seed(f"{where}.seed", self.seed)
        allowed = f"empty, or one of {', '.join(HEADS)}"
        require(self.head in ("", *HEADS), f"{where}.head", self.head, allowed)

    def sources(self) -> list[Path]:
        return [DRAWINGS_FILE]

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return training and held-out images, no composition twice. Their ids are the parts."""
        random = np.random.default_rng([self.seed, 0])
        num_near = round(self.near_duplicates * self.num_train)
        used: set[tuple[int, ...]] = set()
        train = self._draw_parts(random, self.num_train - num_near, used, unseen=False)
        train += self._draw_near(random, train, num_near, used)
        held_out = self._draw_parts(random, NUM_HELD_OUT // 2, used, unseen=False)
        held_out += self._draw_parts(random, NUM_HELD_OUT // 2, used, unseen=True)
        return self._image_set(np.array(train)), self._image_set(np.array(held_out))

    def _draw_parts(
        self, random: np.random.Generator, number: int, used: set[tuple[int, ...]], unseen: bool
    ) -> list[tuple[int, ...]]:
        """Return new compositions, and add them to those used."""
        drawn: list[tuple[int, ...]] = []
        while len(drawn) < number:
            parts = tuple(int(random.choice(size, p=self._weights(size))) for size in SIZES)
            if self.head:
                parts = (*parts[:HEAD], HEADS.index(self.head), *parts[HEAD + 1 :])
            if is_unseen(parts) == unseen and parts not in used:
                used.add(parts)
                drawn.append(parts)
        return drawn

    def _draw_near(
        self,
        random: np.random.Generator,
        train: list[tuple[int, ...]],
        number: int,
        used: set[tuple[int, ...]],
    ) -> list[tuple[int, ...]]:
        """Return new compositions that differ from a training image in one part."""
        drawn: list[tuple[int, ...]] = []
        while len(drawn) < number:
            parts = list(train[random.integers(len(train))])
            family = random.integers(len(SIZES))
            if self.head and family == HEAD:
                continue
            parts[family] = int(random.choice(SIZES[family], p=self._weights(SIZES[family])))
            if not is_unseen(parts) and tuple(parts) not in used:
                used.add(tuple(parts))
                drawn.append(tuple(parts))
        return drawn

    def _weights(self, num_variants: int) -> np.ndarray:
        weights = np.ones(num_variants)
        weights[-NUM_RARE:] = self.rare
        return weights / weights.sum()

    def _image_set(self, parts: np.ndarray) -> ImageSet:
        images = np.rint(render(parts, self.size) * 255).astype(np.uint8)
        captions = tuple((caption(row),) for row in parts)
        ids = tuple("parts/" + "-".join(map(str, row)) for row in parts)
        heads = HEADS if self.head else FAMILIES["head"]
        return ImageSet(images, parts[:, HEAD], captions, ids, heads)


def is_unseen(parts: Sequence[int]) -> bool:
    """Return whether the pair of head and hat is kept out of training."""
    return parts[HEAD] % UNSEEN == parts[HAT] % UNSEEN and parts[HAT] > 0
