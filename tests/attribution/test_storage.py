"""Features in fewer bytes: what is read is what was stored, to the precision that is promised, and so are scores."""

import numpy as np
import pytest
from conftest import journey_trak, small_run

from journey.attribution.kernel import inner_products, kernel_scores
from journey.attribution.projections import QuantizedFeatures, quantize
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.pipeline.settings import Kernel, Projection, Scale, Storage, Training

FEWER = [Storage.fp16, Storage.int8]


@pytest.mark.parametrize("storage", FEWER)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_every_number_is_kept_to_a_part_of_the_largest_of_its_row(storage, size):
    block = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32) * size
    block[3] = 0
    codes, scale = quantize(block, storage)
    assert codes.nbytes == block.nbytes * storage.num_bytes // 4
    largest = np.abs(block).max(1, keepdims=True)
    assert (
        np.abs(codes * scale - block)
        <= largest * {Storage.fp16: 2**-11, Storage.int8: 0.501 / 127}[storage]
    ).all()


@pytest.mark.parametrize("storage", FEWER)
@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
@pytest.mark.parametrize("scale", [Scale.none, Scale.influence])
def test_scores_are_those_of_the_array_that_codes_stand_for(storage, shape, scale):
    random = np.random.default_rng(0)
    train, queries = (
        random.standard_normal(of).astype(np.float32) for of in (shape, (5, shape[1]))
    )
    stored = QuantizedFeatures(*quantize(train, storage))
    found, expected = (np.zeros((2, 5, len(train)), np.float32) for _ in range(2))
    kernel_scores(found, stored, queries, [0.1, 1.0], scale)
    kernel_scores(expected, stored[:], queries, [0.1, 1.0], scale)
    np.testing.assert_array_equal(found, expected)
    inner_products(found[0], stored, queries)
    inner_products(expected[0], stored[:], queries)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "changes", [{}, {"kernel": Kernel.ekfac}, {"projection": Projection.kronecker}], ids=str
)
def test_a_methods_scores_change_little_and_bytes_are_fewer(workspace, changes):
    of = load_experiment(
        small_run(training=Training(num_steps=40, batch_size=16, warmup_steps=4)), workspace.store
    )
    specs = {storage: of.scores(journey_trak(storage=storage, **changes)) for storage in Storage}
    scores = {
        storage: get(spec, workspace).array("scores.npy").reshape(-1, 60)
        for storage, spec in specs.items()
    }
    size = {
        s: get(spec.inputs.train[0][0], workspace).array("features.npy").nbytes
        for s, spec in specs.items()
    }
    for storage, least in ((Storage.fp16, 0.9999), (Storage.int8, 0.99)):
        assert size[storage] * 4 == size[Storage.fp32] * storage.num_bytes
        for one, other in zip(scores[storage], scores[Storage.fp32], strict=True):
            assert np.corrcoef(one, other)[0, 1] > least
