"""The package against one script written without it: the same numbers at every stage."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from journey.attribution.gradient import GradientMethod
from journey.config.run import RunConfig
from journey.data.embedded import Digits
from journey.diffusion.ddpm import DDPM
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import LDS, datamodeling
from journey.evaluation.statistics import weighted_spearman
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline import subsets
from journey.pipeline.settings import Projection, Retraining, Sampler, Sampling, Training
from journey.tracking import JSONLines

SCRIPT = Path(__file__).parents[1] / "experiments/by_hand.py"
SEED, STEPS, NUM_SUBSETS = 3, [600, 300], 8
DAMPING = 100.0  # enough to matter
LEARNING = {"num_steps": 30, "batch_size": 16, "learning_rate": 2e-3, "warmup_steps": 4}


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("by_hand", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def by_hand() -> SimpleNamespace:
    small = {
        "N": 50,
        "Q": 4,
        "K": 8,
        "M": NUM_SUBSETS,
        "steps": STEPS,
        "damping": DAMPING,
        "channels": (8, 16),
        **LEARNING,
    }
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        found = script().main(**small, seed=SEED)
    return SimpleNamespace(**found, printed=printed.getvalue())


@pytest.fixture(scope="module")
def framework(tmp_path_factory) -> SimpleNamespace:
    """The same through specs, stages and artifacts."""
    exact = {
        "projection": Projection.none,
        "num_checkpoints": 1,
        "num_samples": 8,
        "damping": [DAMPING],
    }
    run = RunConfig(
        dataset=Digits(num_train=50, seed=SEED),
        model=DDPM(block_out_channels=[8, 16]),
        training=Training(**LEARNING),
        sampling=Sampling(Sampler.ddim, 50, num_queries=4, steps=STEPS),
        method={"journey": GradientMethod(**exact)},
        retraining=Retraining(num_subsets=NUM_SUBSETS, num_samples=8),
        evaluation=LDS(num_bootstrap=100, paired_steps=STEPS),
        compute=Local(),
        tracking=JSONLines(),
        seed=SEED,
    )
    store = Store(tmp_path_factory.mktemp("by_hand") / "store")
    workspace, made = (
        Workspace(store, run.compute, run.tracking, "by_hand"),
        load_experiment(run, store),
    )
    labels = run.dataset.load()[0].labels
    keeps = [made.random_subset(m) for m in range(NUM_SUBSETS)]
    outputs = [
        get(made.outputs(made.retrained(keep)), workspace).array("outputs.npy") for keep in keeps
    ]
    return SimpleNamespace(
        net=run.model.load(get(made.checkpoint(0), workspace).path, torch.device("cpu")),
        x0_hat=get(made.trajectories, workspace).array("x0_hat.npy"),  # [S, Q, …]
        scores=get(made.scores(run.method["journey"]), workspace).array(
            "scores.npy"
        ),  # [1, S, Q, N]
        masks=np.stack([subsets.subset_mask(labels, keep) for keep in keeps]),  # [M, N]
        measured=np.stack(outputs, -1).mean(0)[:-1],  # [S, Q, M]
    )


def test_the_script_needs_no_framework():
    assert not re.search(r"^\s*(from|import) journey", SCRIPT.read_text(), re.MULTILINE)


def test_the_trained_model_is_the_same(by_hand, framework):
    torch.testing.assert_close(
        by_hand.net.state_dict(), framework.net.state_dict(), rtol=1e-4, atol=1e-5
    )


def test_the_journeys_are_the_same(by_hand, framework):
    for t, expected in zip(STEPS, framework.x0_hat, strict=True):
        np.testing.assert_allclose(by_hand.x0_hat[t], expected, atol=1e-4)


def test_the_scores_are_the_same(by_hand, framework):
    for tau, expected in zip(by_hand.tau, framework.scores[0], strict=True):
        assert np.linalg.norm(tau - expected) < 1e-3 * np.linalg.norm(expected)
        assert np.corrcoef(tau.ravel(), expected.ravel())[0, 1] > 0.9999


def test_models_are_retrained_on_the_same_halves_with_the_same_outputs(by_hand, framework):
    np.testing.assert_array_equal(by_hand.masks, framework.masks)
    assert by_hand.masks.sum(1).tolist() == [20] * NUM_SUBSETS  # 2 of 5 images of each digit
    np.testing.assert_allclose(by_hand.measured, framework.measured, rtol=1e-4)


def test_the_judgement_is_the_same(by_hand, framework):
    """Ours without a bootstrap, of scores as they are, against SciPy's."""
    predicted = datamodeling.linear(
        datamodeling.predict(framework.scores, framework.masks, np.ones((2, 4)))
    )[0][: len(STEPS)]
    once = np.ones((1, NUM_SUBSETS))
    pairs = zip(predicted, framework.measured, strict=True)
    expected = np.stack(
        [weighted_spearman(of_step, measured, once)[0] for of_step, measured in pairs]
    )  # [S, Q]
    np.testing.assert_allclose(by_hand.lds, expected, atol=1e-9)
    lines = by_hand.printed.splitlines()
    for t, rho in zip(STEPS, by_hand.lds, strict=True):
        assert any(line.startswith(f"t={t}: LDS × 100 = {100 * rho.mean():.0f},") for line in lines)
