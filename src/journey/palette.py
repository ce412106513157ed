"""What pictures share: colours that those who are blind to some can tell apart, and which of them a method has everywhere."""

from zlib import crc32

VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, OLIVE, ROSE = (
    "#d55e00", "#0072b2", "#009e73", "#e69f00", "#aa4499", "#56b4e9", "#999933", "#cc79a7",
)  # fmt: skip
"""Okabe and Ito's (2008) and, for what is too light on white among theirs, Tol's (2021)."""

COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)
GREY = "#8c8c8c"
LIGHT = "#c9c9c9"  # what stands behind

FAMILIES = {
    VERMILION: ("journey", "traker", "trak_store"),
    BLUE: ("trak", "dtrak", "das"),
    GREEN: ("ekfac", "gradient_dot", "gradient_cosine"),
    ORANGE: ("pixel", "latent", "caption"),
    PURPLE: ("nda", "datamodel", "empirical_influence"),
    SKY: ("abu", "tracin", "magic"),
    OLIVE: ("retrac", "relative_influence", "renormalized_influence"),
    ROSE: ("encoder", "external"),
    "#5f5f5f": ("random",),
}
"""Methods by their colour; those that share one have marks of their own, in this order. The first are compared most."""
MARKS = ("o", "s", "^")


def colour(method: str) -> str:
    """Of a method in every picture; of one that is not ours, or a variant, one that its name decides.

    >>> colour("journey")
    '#d55e00'
    """
    known = [of for of, names in FAMILIES.items() if method in names]
    return known[0] if known else COLOURS[crc32(method.encode()) % len(COLOURS)]


def mark(method: str) -> str:
    """With its colour, what tells a method from every other of ours."""
    known = [MARKS[names.index(method)] for names in FAMILIES.values() if method in names]
    return known[0] if known else "D"
