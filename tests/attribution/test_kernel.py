import numpy as np
import pytest
import torch
from trak.score_computers import BasicScoreComputer

from journey.attribution.kernel import SingularKernelError, inner_products, kernel_scores
from journey.pipeline.settings import DampingUnit, Scale


def features(n, p, num_queries=5):
    random = np.random.default_rng(0)
    train = random.standard_normal((n, p), np.float32)
    return train, random.standard_normal((num_queries, p), np.float32)


def scored(train, queries, damping, scale=Scale.none, unit=DampingUnit.eigenvalue):
    out = np.zeros((len(damping), len(queries), len(train)), np.float32)
    return out, kernel_scores(out, train, queries, damping, scale, unit=unit)


@pytest.mark.parametrize("unit", DampingUnit)
@pytest.mark.parametrize(
    ("n", "p"), [(60, 20), (20, 60), (40, 40), (5000, 8), (8, 1500), (1, 7), (7, 1), (9, 3)]
)
def test_scores_are_the_dense_formula(n, p, unit):
    train, queries = features(n, p)
    damping = [0.01, 1.0]
    scores, conditions = scored(train, queries, damping, unit=unit)
    phi = train.astype(np.float64)
    gram = phi.T @ phi
    one = np.trace(gram) / (min(n, p) if unit is DampingUnit.eigenvalue else p)
    for tau, relative, conditioning in zip(scores, damping, conditions, strict=True):
        kernel = gram + relative * one * np.eye(p)
        expected = queries @ np.linalg.inv(kernel) @ phi.T
        np.testing.assert_allclose(tau, expected, rtol=1e-4, atol=1e-6)
        factored = kernel if n > p else phi @ phi.T + relative * one * np.eye(n)
        exact = np.linalg.cond(factored, 1)  # LAPACK's estimate is from below, and mostly equal
        assert 0.5 * exact < conditioning.condition_number < 1.001 * exact
        effective = np.trace(gram @ np.linalg.inv(kernel))
        np.testing.assert_allclose(conditioning.effective_parameters, effective, rtol=1e-8)


def test_damping_means_the_same_at_every_dimension():
    """ΦΦᵀ in 20 or 2,000 dimensions has the same effective parameters, damped by eigenvalue."""
    narrow = features(20, 20)
    wide = [np.concatenate([x, np.zeros((len(x), 1980), np.float32)], 1) for x in narrow]

    def effective(train, queries, unit=DampingUnit.eigenvalue):
        return scored(train, queries, [1.0], unit=unit)[1][0].effective_parameters

    assert effective(*narrow) == pytest.approx(effective(*wide))
    assert effective(*wide, DampingUnit.diagonal) > 1.5 * effective(*wide)


def test_scores_are_those_of_the_score_computer_of_trak():
    train, queries = features(500, 128)
    computer = BasicScoreComputer(torch.float64, torch.device("cpu"), logging_level="ERROR")
    phi, phi_q = torch.from_numpy(train).double(), torch.from_numpy(queries).double()
    accumulator = torch.zeros(500, 5, dtype=torch.float64)
    computer.get_scores(computer.get_x_xtx_inv(phi, computer.get_xtx(phi)), phi_q, accumulator)
    scores, _ = scored(train, queries, [1e-9])
    correlation = np.corrcoef(scores[0].T.ravel(), accumulator.numpy().ravel())[0, 1]
    assert correlation > 0.999999  # trak divides by a constant


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
def test_invalid_features_are_refused_by_name(value):
    train, queries = features(30, 10)
    invalid = train.copy()
    invalid[7] = value
    with pytest.raises(ValueError, match="features of training example 7"):
        scored(invalid, queries, [1.0])
    with pytest.raises(ValueError, match="features of query 7"):
        scored(train, invalid, [1.0])


def test_a_singular_kernel_names_a_sufficient_damping():
    train, queries = features(30, 10)
    train[:] = train[:, :1]
    with pytest.raises(SingularKernelError, match=r"use damping=1e-11 or more") as caught:
        scored(train, queries, [1e-17])
    sufficient = float(str(caught.value).split("damping=")[1].split()[0])
    scored(train, queries, [sufficient])


@pytest.mark.parametrize(("n", "p"), [(60, 20), (20, 60)])
def test_scales_are_the_dense_formulas_in_blocks(n, p, monkeypatch):
    monkeypatch.setattr("journey.attribution.kernel.BLOCK_BYTES", 8 * 30 * 7)
    train, queries = features(n, p)
    phi = train.astype(np.float64)
    kernel = phi.T @ phi
    inverse = np.linalg.inv(kernel + 0.5 * np.trace(kernel) / min(n, p) * np.eye(p))
    tau, norms = queries @ inverse @ phi.T, np.linalg.norm(phi, axis=1)
    query_norms = np.linalg.norm(queries, axis=1)[:, None]
    formulas = {
        Scale.none: tau,
        Scale.gradient: tau / norms,
        Scale.influence: tau / np.linalg.norm(inverse @ phi.T, axis=0),
        Scale.cosine: tau / norms / query_norms,
        Scale.leverage: tau / (1 - np.diag(phi @ inverse @ phi.T)),
    }
    for scale, expected in formulas.items():
        scores, _ = scored(train, queries, [0.5], scale)
        np.testing.assert_allclose(scores[0], expected, rtol=1e-4, atol=1e-7)
    assert set(formulas) == set(Scale)
    out = np.ones((5, n), np.float32)
    inner_products(out, train, queries, Scale.cosine, weight=0.5)
    np.testing.assert_allclose(out, 1 + 0.5 * queries @ phi.T / norms / query_norms, rtol=1e-5)


@pytest.mark.parametrize(("n", "p"), [(12, 5), (5, 12)])
def test_scores_scaled_by_leverage_are_exact_changes_without_an_example(n, p):
    """Ridge regression without example i predicts y_i by (ŷ_i − h_i y_i) / (1 − h_i)."""
    train, _ = features(n, p)
    phi = train.astype(np.float64)
    targets = np.random.default_rng(1).standard_normal(n)
    penalty = 0.3 * np.trace(phi.T @ phi) / min(n, p)
    scores, _ = scored(train, train, [0.3], Scale.leverage)
    hat = phi @ np.linalg.inv(phi.T @ phi + penalty * np.eye(p)) @ phi.T
    residuals = targets - hat @ targets
    for i in range(n):
        others = np.delete(np.arange(n), i)
        ridge = phi[others].T @ phi[others] + penalty * np.eye(p)
        weights = np.linalg.solve(ridge, phi[others].T @ targets[others])
        change = phi @ weights - hat @ targets  # of every prediction
        np.testing.assert_allclose(change, -scores[0, :, i] * residuals[i], rtol=1e-4, atol=1e-6)


def test_a_leverage_of_one_is_refused():
    train = np.concatenate([np.eye(2, dtype=np.float32)[[0, 0, 0]], [[0, 1e6]]]).astype(np.float32)
    with pytest.raises(ValueError, match=r"scale=leverage would divide by 0; use a larger damping"):
        scored(train, train[:1], [1e-13], Scale.leverage)
