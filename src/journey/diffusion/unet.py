"""What U-Nets of pixels and of latents share: checks of their settings, cost, and blocks."""

import math
from typing import Any, Protocol

from journey.engine.checks import require, require_count


class UNetSettings(Protocol):
    """Settings of a U-Net of diffusers."""

    block_out_channels: list[int]  # channels of each level; all but the first halve the resolution
    layers_per_block: int  # residual blocks of a level on the way down; one more on the way up
    attention_blocks: list[int]  # indices of the levels with attention
    norm_num_groups: int  # of group normalisation


def label(model: UNetSettings) -> str:
    """Return channels, residual blocks per level, and levels with attention, as in `16-32x2a1`."""
    layers = f"x{model.layers_per_block}" if model.layers_per_block > 1 else ""
    levels = "".join(map(str, model.attention_blocks))
    return "-".join(map(str, model.block_out_channels)) + layers + (levels and f"a{levels}")


def check(where: str, model: UNetSettings) -> None:
    """Check the settings of a U-Net. Raises ConfigError, which names the setting."""
    channels, groups = model.block_out_channels, model.norm_num_groups
    require_count(f"{where}.norm_num_groups", groups)
    name = f"{where}.block_out_channels"
    require(0 < len(channels) <= 16, name, channels, "a list of 1…16 numbers")
    for width in channels:
        allowed = f"multiples of norm_num_groups={groups} in 1…{2**14}"
        require(0 < width <= 2**14 and width % groups == 0, name, channels, allowed)
    require_count(f"{where}.layers_per_block", model.layers_per_block, most=64)
    levels, indices = model.attention_blocks, set(range(len(channels)))
    distinct = len(set(levels)) == len(levels) and set(levels) <= indices
    allowed = f"distinct indices in 0…{len(channels) - 1}"
    require(distinct, f"{where}.attention_blocks", levels, allowed)


def check_sides(model: UNetSettings, inputs: str, sides: tuple[int, int]) -> None:
    """Check that `inputs` (images or latents) can be halved at every level. Raises ConfigError."""
    halvings = len(model.block_out_channels) - 1
    divisible = math.gcd(*sides) % 2**halvings == 0
    allowed = f"so few that {inputs} of {sides[0]}×{sides[1]} can be halved {halvings} times"
    require(divisible, "model.block_out_channels", model.block_out_channels, allowed)


def first_parameter(model: UNetSettings) -> tuple[str, int]:
    """Return the name and the length of a U-Net's first parameter."""
    return "conv_in.weight", model.block_out_channels[0]


def multiply_adds(model: UNetSettings, area: float) -> float:
    """Return those of the 3×3 convolutions, two per residual block, for inputs of H × W = area."""
    total = 0.0
    for level, width in enumerate(model.block_out_channels):
        total += area / 4**level * 9 * width**2 * 2 * (2 * model.layers_per_block + 1)
    return total


def arguments(model: UNetSettings, shape: tuple[int, ...], attention: str) -> dict[str, Any]:
    """Return what diffusers' U-Nets are built from; `attention` begins its names of such blocks."""
    channels, height, width = shape
    prefixes = [""] * len(model.block_out_channels)
    for level in model.attention_blocks:
        prefixes[level] = attention
    return {
        "sample_size": (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": tuple(model.block_out_channels),
        "layers_per_block": model.layers_per_block,
        "down_block_types": tuple(f"{prefix}DownBlock2D" for prefix in prefixes),
        "up_block_types": tuple(f"{prefix}UpBlock2D" for prefix in reversed(prefixes)),
        "norm_num_groups": model.norm_num_groups,
    }
