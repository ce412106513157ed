import numpy as np
import pytest
import torch
from trak.score_computers import BasicScoreComputer

from journey.attribution.kernel import SingularKernelError, inner_products, kernel_scores
from journey.pipeline.settings import DampingUnit, Scale


def features(n, p, q=5, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((n, p), np.float32), random.standard_normal((q, p), np.float32)


def scored(train, queries, damping, scale=Scale.none, unit=DampingUnit.eigenvalue):
    out = np.zeros((len(damping), len(queries), len(train)), np.float32)
    return out, kernel_scores(out, train, queries, damping, scale, unit=unit)


@pytest.mark.parametrize("unit", DampingUnit)
@pytest.mark.parametrize(
    ("n", "p"), [(60, 20), (20, 60), (40, 40), (5000, 8), (8, 1500), (1, 7), (7, 1), (9, 3)]
)
def test_is_the_dense_formula(n, p, unit):
    train, queries = features(n, p)
    damping = [0.01, 1.0]
    scores, found = scored(train, queries, damping, unit=unit)
    phi = train.astype(np.float64)
    one = np.square(phi).sum() / (min(n, p) if unit is DampingUnit.eigenvalue else p)
    for of_damping, relative, conditioning in zip(scores, damping, found, strict=True):
        gram = phi.T @ phi
        kernel = gram + relative * one * np.eye(p)
        expected = queries @ np.linalg.inv(kernel) @ phi.T
        np.testing.assert_allclose(of_damping, expected, rtol=1e-4, atol=1e-6)
        solved = kernel if n > p else phi @ phi.T + relative * one * np.eye(n)
        exact = np.linalg.cond(solved, 1)
        assert (
            0.5 * exact < conditioning.condition_number < 1.001 * exact
        )  # an estimate from below, nearly always the number itself
        effective = np.trace(gram @ np.linalg.inv(kernel))
        np.testing.assert_allclose(conditioning.effective_parameters, effective, rtol=1e-8)


def test_damping_means_the_same_at_every_dimension():
    """Of one kernel, ΦΦᵀ, written in 20 dimensions or in 2,000: by eigenvalue, the effective parameters are the same."""
    train, queries = features(50, 20)
    wide, wide_q = (
        np.concatenate([x, np.zeros((len(x), 1980), np.float32)], 1) for x in (train, queries)
    )
    narrow_of, wide_of = (
        scored(*x, [1.0])[1][0].effective_parameters
        for x in ((train[:20], queries), (wide[:20], wide_q))
    )
    assert narrow_of == pytest.approx(wide_of)
    diagonal = scored(wide[:20], wide_q, [1.0], unit=DampingUnit.diagonal)[1][
        0
    ].effective_parameters
    assert diagonal > 1.5 * wide_of


def test_blocks_change_nothing_but_rounding(monkeypatch):
    for n, p in ((60, 20), (20, 60)):
        train, queries = features(n, p)
        whole, _ = scored(train, queries, [0.1])
        monkeypatch.setattr("journey.attribution.kernel.BLOCK_BYTES", 8 * 30 * 7)
        np.testing.assert_allclose(scored(train, queries, [0.1])[0], whole, rtol=1e-5, atol=1e-8)
        monkeypatch.undo()


def test_is_traks_own_score_computer():
    train, queries = features(500, 128)
    computer = BasicScoreComputer(torch.float64, torch.device("cpu"), logging_level="ERROR")
    phi, phi_q = torch.from_numpy(train).double(), torch.from_numpy(queries).double()
    accumulator = torch.zeros(500, 5, dtype=torch.float64)
    computer.get_scores(computer.get_x_xtx_inv(phi, computer.get_xtx(phi)), phi_q, accumulator)
    scores, _ = scored(train, queries, [1e-9])
    correlation = np.corrcoef(scores[0].T.ravel(), accumulator.numpy().ravel())[0, 1]
    assert correlation > 0.999999  # trak divides by a constant


def test_bad_features_are_refused_by_name():
    train, queries = features(30, 10)
    for bad in (np.nan, 0.0, np.inf):
        broken = train.copy()
        broken[7] = bad
        with pytest.raises(ValueError, match="features of training example 7"):
            scored(broken, queries, [1.0])
        with pytest.raises(ValueError, match="features of query 7"):
            scored(train, broken, [1.0])


def test_singular_kernel_names_a_damping_that_would_do():
    train, queries = features(30, 10)
    train[:] = train[:, :1]
    with pytest.raises(SingularKernelError, match=r"damping=1e-11 would do") as caught:
        scored(train, queries, [1e-17])
    enough = float(str(caught.value).split("damping=")[1].split()[0])
    scored(train, queries, [enough])


@pytest.mark.parametrize(("n", "p"), [(60, 20), (20, 60)])
def test_scales_are_the_dense_formulas(n, p, monkeypatch):
    monkeypatch.setattr("journey.attribution.kernel.BLOCK_BYTES", 8 * 30 * 7)
    train, queries = features(n, p)
    phi = train.astype(np.float64)
    kernel = phi.T @ phi
    inverse = np.linalg.inv(kernel + 0.5 * np.trace(kernel) / min(n, p) * np.eye(p))
    tau, norms = queries @ inverse @ phi.T, np.linalg.norm(phi, axis=1)
    expected = {
        Scale.gradient: tau / norms,
        Scale.influence: tau / np.linalg.norm(inverse @ phi.T, axis=0),
        Scale.cosine: tau / norms / np.linalg.norm(queries, axis=1)[:, None],
    }
    for scale, by_formula in expected.items():
        np.testing.assert_allclose(
            scored(train, queries, [0.5], scale)[0][0], by_formula, rtol=1e-4, atol=1e-7
        )
    out = np.ones((5, n), np.float32)
    inner_products(out, train, queries, Scale.cosine, weight=0.5)
    cosine = queries @ phi.T / norms / np.linalg.norm(queries, axis=1)[:, None]
    np.testing.assert_allclose(out, 1 + 0.5 * cosine, rtol=1e-5)
