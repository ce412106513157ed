"""Retrainings without a region's proponents, and what they are called beside it."""

from dataclasses import dataclass

from journey.artifacts.specs import Continuations, Measure

WHOLE = "whole image"
RANDOM, OTHERS, ALL = "random images", "other regions", "all regions"


@dataclass(frozen=True)
class Removal:
    """How some queries go on under a model without some images, and what their outputs in every region are then."""

    ends: Continuations
    outputs: tuple[Measure, ...]  # [region]
