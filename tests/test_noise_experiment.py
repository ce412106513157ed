"""The agreement of scores from several noise sets."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr


@pytest.fixture
def noise(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments/ablations"))
    import noise

    yield noise
    sys.modules.pop("noise")


def test_agreement_is_the_mean_rank_correlation_of_two_sets(noise):
    scores = np.random.default_rng(0).normal(size=(3, 2, 4, 30)).round(1)  # with ties
    for query, value in enumerate(noise.agreement(scores)):
        rhos = []
        for one, other in itertools.combinations(scores, 2):
            rhos += [spearmanr(one[step, query], other[step, query])[0] for step in (0, 1)]
        assert value == pytest.approx(np.mean(rhos))
