"""What an accelerator's plan asks of it, counted on the pretended one; see benchmarks/counts.py."""

import sys
from pathlib import Path

import pretended
import pytest

from journey.diffusion.ddpm import DDPM
from journey.engine.workspace import Precision

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.parametrize("method", ["das", "ekfac"])
def test_a_block_has_all_pairs_and_waits_once(method):
    if reason := pretended.reason_unavailable():
        pytest.skip(reason)
    pretended.register()
    import counts

    case = counts.Case(DDPM(block_out_channels=[8, 16]), Precision.bf16, (1, 8, 8), 8)
    result = counts.count_features(case, counts.VARIANTS[method], 0.5)
    pairs = result["pairs_of_a_block"]
    assert result["plan"]["strategy"] == "layers"
    assert result["plan"]["batch"] * counts.NUM_SAMPLES == pairs
    assert pairs > 500
    assert result["waits"] * pairs == pytest.approx(1, rel=1e-3)
    assert result["launches"] < 5
    assert result["peak_gib"] < 0.5
