"""What pictures share: colours that those who are blind to some can tell apart, and which of them a method has everywhere."""

from zlib import crc32

VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, OLIVE, ROSE = (
    "#d55e00", "#0072b2", "#009e73", "#e69f00", "#aa4499", "#56b4e9", "#999933", "#cc79a7",
)  # fmt: skip
"""Okabe and Ito's (2008) and, for what is too light on white among theirs, Tol's (2021)."""

COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)
GREY = "#8c8c8c"

METHODS = {
    "journey": VERMILION, "trak": BLUE, "ekfac": GREEN, "pixel": ORANGE, "nda": PURPLE, "abu": SKY, "encoder": ROSE,
    "latent": OLIVE, "caption": OLIVE, "random": "#5f5f5f", "traker": ROSE, "trak_store": ROSE, "external": ROSE,
    "dtrak": ROSE, "das": OLIVE, "retrac": SKY, "tracin": PURPLE, "magic": OLIVE, "datamodel": ROSE,
    "empirical_influence": SKY, "gradient_dot": OLIVE, "gradient_cosine": SKY, "relative_influence": ROSE,
    "renormalized_influence": PURPLE,
}  # fmt: skip
"""Those that are compared most have a colour of their own; of the others, no colour says which family they are of."""


def colour(method: str) -> str:
    """Of a method in every picture; of one that is not ours, or a variant, one that its name decides.

    >>> colour("journey")
    '#d55e00'
    """
    return METHODS.get(method, COLOURS[crc32(method.encode()) % len(COLOURS)])
