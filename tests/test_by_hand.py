"""A script that computes everything without the package: both give the same numbers."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from types import SimpleNamespace

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
from journey.pipeline.settings import Projection, Retraining, Sampler, Sampling, Training
from journey.pipeline.subsets import subset_mask
from journey.tracking import JSONLines

SCRIPT = Path(__file__).parents[1] / "experiments/by_hand.py"
SEED, STEPS, NUM_SUBSETS, NUM_SAMPLES = 3, [600, 300], 8, 8
DAMPING = 100.0  # large enough to change the scores
TRAINING = {"num_steps": 30, "batch_size": 16, "learning_rate": 2e-3, "warmup_steps": 4}


@pytest.fixture(scope="module")
def by_hand() -> SimpleNamespace:
    """Return the results of the script and what it prints."""
    spec = importlib.util.spec_from_file_location("by_hand", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sizes = {"N": 50, "Q": 4, "K": NUM_SAMPLES, "M": NUM_SUBSETS, "channels": (8, 16)}
    settings = {"steps": STEPS, "damping": DAMPING, "seed": SEED}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        results = script.main(**sizes, **settings, **TRAINING)
    return SimpleNamespace(**results, printed=printed.getvalue())


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> SimpleNamespace:
    """Return the same results from the artifacts of the package."""
    method = GradientMethod(
        projection=Projection.none, num_checkpoints=1, num_samples=NUM_SAMPLES, damping=[DAMPING]
    )
    run = RunConfig(
        dataset=Digits(num_train=50, seed=SEED),
        model=DDPM(block_out_channels=[8, 16]),
        training=Training(**TRAINING),
        sampling=Sampling(Sampler.ddim, 50, num_queries=4, steps=STEPS),
        method={"journey": method},
        retraining=Retraining(num_subsets=NUM_SUBSETS, num_samples=NUM_SAMPLES),
        evaluation=LDS(num_bootstrap=100, paired_steps=STEPS),
        compute=Local(),
        tracking=JSONLines(),
        seed=SEED,
    )
    store = Store(tmp_path_factory.mktemp("by_hand") / "store")
    workspace = Workspace(store, run.compute, run.tracking, "by_hand")
    experiment = load_experiment(run, store)
    labels = run.dataset.load()[0].labels
    masks, outputs = [], []
    for m in range(NUM_SUBSETS):
        subset = experiment.random_subset(m)
        masks.append(subset_mask(labels, subset))
        measure = experiment.outputs(experiment.retrained(subset))
        outputs.append(get(measure, workspace).array("outputs.npy"))
    checkpoint = get(experiment.checkpoint(0), workspace)
    scores = get(experiment.scores(method), workspace)
    return SimpleNamespace(
        net=run.model.load(checkpoint.path, torch.device("cpu")),
        x0_hat=get(experiment.trajectories, workspace).array("x0_hat.npy"),  # [S, Q, …]
        scores=scores.array("scores.npy"),  # [1, S, Q, N]
        masks=np.stack(masks),  # [M, N]
        measured=np.stack(outputs, -1).mean(0)[:-1],  # [S, Q, M]
    )


def test_the_script_does_not_import_the_package():
    assert not re.search(r"^\s*(from|import) journey", SCRIPT.read_text(), re.MULTILINE)


def test_the_trained_model_is_the_same(by_hand, package):
    torch.testing.assert_close(
        by_hand.net.state_dict(), package.net.state_dict(), rtol=1e-4, atol=1e-5
    )


def test_the_trajectories_are_the_same(by_hand, package):
    for t, expected in zip(STEPS, package.x0_hat, strict=True):
        np.testing.assert_allclose(by_hand.x0_hat[t], expected, atol=1e-4)


def test_the_scores_are_the_same(by_hand, package):
    for tau, expected in zip(by_hand.tau, package.scores[0], strict=True):
        assert np.linalg.norm(tau - expected) < 1e-3 * np.linalg.norm(expected)
        assert np.corrcoef(tau.ravel(), expected.ravel())[0, 1] > 0.9999


def test_retrained_models_have_the_same_subsets_and_outputs(by_hand, package):
    np.testing.assert_array_equal(by_hand.masks, package.masks)
    assert by_hand.masks.sum(1).tolist() == [20] * NUM_SUBSETS  # 2 of 5 images of each digit
    np.testing.assert_allclose(by_hand.measured, package.measured, rtol=1e-4)


def test_the_lds_is_the_same(by_hand, package):
    """The package's LDS without bootstrap and score transform equals SciPy's."""
    predictions = datamodeling.predict(package.scores, package.masks, np.ones((2, 4)))
    predicted = datamodeling.linear(predictions)[0][: len(STEPS)]  # [S, Q, M]
    once = np.ones((1, NUM_SUBSETS))
    for i, measured in enumerate(package.measured):
        expected = weighted_spearman(predicted[i], measured, once)[0]  # [Q]
        np.testing.assert_allclose(by_hand.lds[i], expected, atol=1e-9)
    lines = by_hand.printed.splitlines()
    for t, rho in zip(STEPS, by_hand.lds, strict=True):
        assert any(line.startswith(f"t={t}: LDS × 100 = {100 * rho.mean():.0f},") for line in lines)
