"""How a setting is refused."""

import math
import re


class ConfigError(ValueError):
    """A setting that cannot be honoured. The message is one line: the field, its value and what is allowed."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name}={value}: must be {allowed}")


def require_name(name: str, value: str) -> None:
    """Names become parts of paths."""
    require(re.fullmatch(r"\w[\w.-]*", value) is not None, name, value, "letters, digits, '.', '_' and '-'")


def require_positive(name: str, value: float) -> None:
    """Refuses NaN and infinity too."""
    require(0 < value < math.inf, name, value, "positive and finite")


def require_candidates(name: str, values: list[float]) -> None:
    """Values among which an evaluation chooses."""
    require(len(values) > 0, name, values, "a non-empty list")
    for value in values:
        require_positive(name, value)


def require_draws(group: str, num_draws: int, antithetic: bool) -> None:
    """Refuse no draws, and an odd number of them where they come in pairs."""
    require(num_draws >= 1, f"{group}.num_draws", num_draws, "at least 1")
    require(not antithetic or num_draws % 2 == 0, f"{group}.num_draws", num_draws, "even when antithetic=true")
