import pytest
import torch

from journey.attribution.features import join_blocks
from journey.attribution.projections import make_projection, segment_sums
from journey.pipeline.settings import Projection

CPU = torch.device("cpu")
RANDOM = [Projection.sparse, Projection.gaussian, Projection.rademacher]


@pytest.mark.parametrize("projection", RANDOM)
def test_a_projection_is_one_linear_map(projection):
    project = make_projection(projection, 300, 40, 0, "a", CPU)
    matrix = project(torch.eye(300))  # P, [d, p]
    g = torch.randn(7, 300)
    torch.testing.assert_close(project(g), g @ matrix, rtol=1e-4, atol=1e-4)
    assert matrix.count_nonzero() == (300 if projection is Projection.sparse else 300 * 40)


@pytest.mark.parametrize("p", [1, 40, 700])
def test_sums_of_segments_are_the_sparse_projection(p):
    bucket, sign = torch.randint(p, (300,)), torch.randint(2, (300,)) * 2.0 - 1.0
    g = torch.randn(7, 300)
    expected = torch.zeros(7, p).index_add_(1, bucket, g * sign)
    ours = segment_sums(bucket, sign, p, CPU)(g)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("projection", RANDOM)
def test_norms_and_inner_products_of_heavy_tailed_vectors_are_preserved(projection):
    torch.manual_seed(0)
    g = torch.randn(20, 20_000) * torch.rand(20_000).pow(4)
    g[10:] += g[:10]
    exact, estimates = g @ g.T, []
    for i in range(4):
        phi = make_projection(projection, 20_000, 2048, 0, f"key {i}", CPU)(g)
        estimates.append(phi @ phi.T)
    scale = exact.diag().sqrt()
    errors = (torch.stack(estimates) - exact) / (scale[:, None] * scale)
    assert errors.square().mean().sqrt() < 2 / 2048**0.5  # variance at most 2 / p for unit vectors
    assert errors.mean(0).abs().max() < 0.06, "no bias"


def test_the_key_determines_the_projection():
    g, features = torch.randn(2, 500), []
    for key in ("a", "a", "b"):
        features.append(make_projection(Projection.sparse, 500, 64, 0, key, CPU)(g))
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def test_no_projection_keeps_the_gradient():
    g = torch.randn(2, 500)
    assert make_projection(Projection.none, 500, 0, 0, "a", CPU)(g) is g


@pytest.mark.parametrize(
    ("num_rows", "sizes"), [(1, [3, 3, 1]), (4, [3, 4]), (6, [6, 1]), (7, [7]), (100, [7])]
)
def test_a_dense_projection_receives_joined_blocks_in_order(num_rows, sizes):
    rows = torch.randn(7, 5)
    groups = list(join_blocks(iter(rows.split(3)), num_rows))
    assert [len(group) for group in groups] == sizes
    assert torch.equal(torch.cat(groups), rows)
    assert list(join_blocks(iter([]), num_rows)) == []
