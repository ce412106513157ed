"""Quantized features have the promised precision, and so have their scores."""

import numpy as np
import pytest
from conftest import journey_trak, small_run

from journey.attribution.kernel import inner_products, kernel_scores
from journey.attribution.projections import QuantizedFeatures, quantize
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.pipeline.settings import Kernel, Projection, Scale, Storage, Training

QUANTIZED = [Storage.fp16, Storage.int8]
PRECISION = {Storage.fp16: 2**-11, Storage.int8: 0.501 / 127}


@pytest.mark.parametrize("storage", QUANTIZED)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_error_is_a_fraction_of_the_largest_value_of_the_row(storage, size):
    block = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32) * size
    block[3] = 0
    codes, scale = quantize(block, storage)
    assert codes.nbytes == block.nbytes * storage.num_bytes // 4
    largest = np.abs(block).max(1, keepdims=True)
    assert (np.abs(codes * scale - block) <= largest * PRECISION[storage]).all()


@pytest.mark.parametrize("storage", QUANTIZED)
@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
@pytest.mark.parametrize("scale", [Scale.none, Scale.influence])
def test_scores_are_those_of_the_array_that_codes_stand_for(storage, shape, scale):
    random = np.random.default_rng(0)
    train = random.standard_normal(shape).astype(np.float32)
    queries = random.standard_normal((5, shape[1])).astype(np.float32)
    stored = QuantizedFeatures(*quantize(train, storage))
    ours, expected = np.zeros((2, 2, 5, len(train)), np.float32)
    for out, features in ((ours, stored), (expected, stored[:])):
        kernel_scores(out, features, queries, [0.1, 1.0], scale)
        inner_products(out[0], features, queries)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "changes", [{}, {"kernel": Kernel.ekfac}, {"projection": Projection.kronecker}], ids=str
)
def test_scores_of_a_method_change_little_and_files_are_smaller(workspace, changes):
    run = small_run(training=Training(num_steps=40, batch_size=16, warmup_steps=4))
    experiment = load_experiment(run, workspace.store)
    scores, size = {}, {}
    for storage in Storage:
        spec = experiment.scores(journey_trak(storage=storage, **changes))
        scores[storage] = get(spec, workspace).array("scores.npy").reshape(-1, 60)
        features = get(spec.inputs.train[0][0], workspace).array("features.npy")
        size[storage] = features.nbytes
    for storage, least in ((Storage.fp16, 0.9999), (Storage.int8, 0.99)):
        assert size[storage] * 4 == size[Storage.fp32] * storage.num_bytes
        for row, exact in zip(scores[storage], scores[Storage.fp32], strict=True):
            assert np.corrcoef(row, exact)[0, 1] > least
