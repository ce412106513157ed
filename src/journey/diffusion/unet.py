"""What the U-Nets of pixels and of latents have in common: their settings' names, checks and cost."""

from journey.engine.checks import require, require_count


def label(channels: list[int], layers_per_block: int, attention_blocks: list[int]) -> str:
    """Channels; then, where there are any, residual blocks a level and levels that attend."""
    layers = f"x{layers_per_block}" if layers_per_block > 1 else ""
    attention = "a" + "".join(map(str, attention_blocks)) if attention_blocks else ""
    return "-".join(map(str, channels)) + layers + attention


def check(
    where: str, channels: list[int], groups: int, layers_per_block: int, attention_blocks: list[int]
) -> None:
    """Raises: ConfigError naming the setting of a U-Net that there cannot be."""
    require_count(f"{where}.norm_num_groups", groups)
    require(
        0 < len(channels) <= 16, f"{where}.block_out_channels", channels, "a list of 1…16 numbers"
    )
    divisible = all(0 < c <= 2**14 and c % groups == 0 for c in channels)
    require(
        divisible,
        f"{where}.block_out_channels",
        channels,
        f"multiples of norm_num_groups={groups} in 1…{2**14}",
    )
    require_count(f"{where}.layers_per_block", layers_per_block, most=64)
    levels = range(len(channels))
    known = all(b in levels for b in attention_blocks) and len(set(attention_blocks)) == len(
        attention_blocks
    )
    require(
        known,
        f"{where}.attention_blocks",
        attention_blocks,
        f"distinct indices in 0…{len(channels) - 1}",
    )


def check_sides(channels: list[int], what: str, sides: tuple[int, int]) -> None:
    """Raises: ConfigError if images or latents cannot be halved as often as there are levels."""
    levels = len(channels) - 1
    halved = all(side % 2**levels == 0 for side in sides)
    allowed = f"so few that {what} of {sides[0]}×{sides[1]} can be halved {levels} times"
    require(halved, "model.block_out_channels", channels, allowed)


def multiply_adds(channels: list[int], layers_per_block: int, area: float) -> float:
    """Of the 3×3 convolutions: two for each residual block, one block more on the way up than down. area: H × W."""
    total = 0.0
    for level, width in enumerate(channels):
        total += area / 4**level * 9 * width**2 * 2 * (2 * layers_per_block + 1)
    return total
