"""`trak.TRAKer` as a method, and its store as features: against a user's script and our kernel."""

import dataclasses
import json
import logging
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run
from scipy.stats import spearmanr
from trak import TRAKer
from trak.projectors import BasicProjector, ProjectionType

from journey.attribution.kernel import kernel_scores
from journey.attribution.outputs import sample_noise, sample_noise_at
from journey.attribution.traker import TrakerMethod
from journey.attribution.traker.stage import LossOutput
from journey.attribution.traker.store import TrakStore
from journey.data.images import train_images
from journey.diffusion.trajectories import query_estimates
from journey.engine.checks import ConfigError
from journey.engine.seeding import entropy
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.pipeline.settings import DampingUnit, Projection, Training

P, NUM_SAMPLES, STEPS = 128, 8, (600, 300)
SEED = entropy(0, "traker") % 2**31  # of the projection
RUN = small_run(training=Training(num_steps=60, batch_size=16, warmup_steps=4))
CPU = torch.device("cpu")


def traker_method(**changes) -> TrakerMethod:
    settings = {"num_checkpoints": 1, "num_samples": NUM_SAMPLES, "projection_dim": P}
    return TrakerMethod(**{**settings, "damping": [0.1, 10.0], **changes})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(Store(tmp_path_factory.mktemp("store")), RUN.compute, RUN.tracking, "test")


@pytest.fixture(scope="module")
def experiment(workspace):
    return load_experiment(RUN, workspace.store)


@pytest.fixture(scope="module")
def scores_of(experiment, workspace):
    """A function of a method to its scores [damping, step, query, train]."""
    return lambda method: get(experiment.scores(method), workspace).array("scores.npy")


@pytest.fixture(scope="module")
def scores(scores_of):
    return scores_of(traker_method())


def agreement(ours, theirs) -> np.ndarray:
    """Return Spearman's correlation over training images, for every step and query."""
    rows = zip(ours.reshape(-1, ours.shape[-1]), theirs.reshape(-1, theirs.shape[-1]), strict=True)
    return np.array([spearmanr(a, b).statistic for a, b in rows])


def user_script(save_dir, experiment, workspace, half=False) -> np.ndarray:
    """Run what a user of TRAKer writes, with two models; return scores [step, query, train]."""
    schedule = RUN.model.schedule(CPU)
    images = RUN.model.encode(train_images(experiment.images, workspace)).x0
    noise = sample_noise((0, 1000), NUM_SAMPLES, (1, 8, 8), 0, "attribute")
    weights = []
    for k in range(2):
        model = RUN.model.load(get(experiment.checkpoint(k), workspace).path, CPU)
        weights.append({name: w.clone() for name, w in model.state_dict().items()})

    def new_traker(lambda_reg=0.0):
        task, settings = LossOutput(schedule, noise), {"lambda_reg": lambda_reg, "device": "cpu"}
        settings |= {"proj_dim": P, "projector_seed": SEED, "use_half_precision": half}
        settings["logging_level"] = logging.CRITICAL
        return TRAKer(model, task, len(images), save_dir, **settings)

    traker = new_traker()
    for k in range(2):
        traker.load_checkpoint(weights[k], k)
        traker.featurize([images], num_samples=len(images))
    for k in range(2):
        phi = np.load(save_dir / f"{k}/grads.mmap").astype(np.float64)
        traker = new_traker(0.1 * np.square(phi).sum() / len(images))
        traker.finalize_features([k])
        for t, queries in zip(
            STEPS, query_estimates(experiment.trajectories, STEPS, workspace), strict=True
        ):
            traker.task.noise = sample_noise_at(
                t, NUM_SAMPLES, (1, 8, 8), 0, "attribute queries", False
            )
            traker.start_scoring_checkpoint(f"step{t}", weights[k], k, len(queries))
            traker.score([queries.x0], num_samples=len(queries))
    traker = new_traker()
    return np.stack([np.array(traker.finalize_scores(f"step{t}").T) for t in STEPS])


# ---------------------------------------------------------------------------------- method=traker


def test_scores_are_those_of_a_users_script(experiment, workspace, scores_of, tmp_path):
    """Two checkpoints are averaged as TRAKer does. Batches differ, so rounding does."""
    ours = scores_of(traker_method(num_checkpoints=2, damping=[0.1]))[0]
    theirs = user_script(tmp_path, experiment, workspace)
    np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3 * np.abs(theirs).max())
    assert agreement(ours, theirs).min() > 0.999


def test_our_gradients_and_kernel_with_its_projection_give_its_ranks(experiment, workspace, scores):
    inputs = experiment.scores(journey_trak(projection=Projection.none)).inputs
    gradients = []
    for spec in (inputs.train[0][0], inputs.queries[0]):
        gradients.append(torch.from_numpy(np.array(get(spec, workspace).array("features.npy"))))
    projector = BasicProjector(gradients[0].shape[1], P, SEED, ProjectionType.normal, "cpu")
    phi, phi_q = (projector.project(g, 0).numpy() for g in gradients)
    ours = np.zeros((2, 8, 60), np.float32)
    kernel_scores(ours, phi, phi_q, [0.1, 10.0])
    assert agreement(ours, scores).min() > 0.999


def test_its_projection_is_as_exact_as_ours(scores_of):
    """At 2,048 dimensions, both agree with the exact kernel to a rank correlation of 0.95."""
    exact = scores_of(journey_trak(projection=Projection.none, damping=[10.0]))
    gaussian = journey_trak(projection=Projection.gaussian, projection_dim=2048, damping=[10.0])
    ours = agreement(exact, scores_of(gaussian)).mean()
    theirs = agreement(exact, scores_of(traker_method(projection_dim=2048, damping=[10.0]))).mean()
    assert theirs == pytest.approx(ours, abs=0.02)
    assert theirs > 0.94


def test_damping_relative_to_the_diagonal_is_converted(scores_of, scores):
    method = traker_method(damping_unit=DampingUnit.diagonal, damping=[0.1 * P / 60])
    atol = 1e-4 * np.abs(scores[0]).max()
    np.testing.assert_allclose(scores_of(method)[0], scores[0], rtol=1e-3, atol=atol)


@pytest.mark.parametrize(
    "changes",
    [{}, {"noise_set": 2, "stratified": False}, {"antithetic": True, "first_checkpoint": 1}],
)
def test_examples_and_noise_samples_are_ours(experiment, changes):
    inputs = experiment.scores(journey_trak(projection_dim=P, **changes)).inputs
    train, queries = inputs.train[0][0], inputs.queries[0]
    (spec,) = experiment.scores(traker_method(**changes)).inputs.scores
    assert (spec.checkpoint, spec.settings) == (train.checkpoint, train.settings)
    assert (spec.trajectories, spec.steps) == (queries.trajectories, queries.steps)
    stratified = spec.settings.stratified  # without effect on queries
    assert spec.settings == dataclasses.replace(queries.settings, stratified=stratified)


def test_the_store_of_an_interrupted_run_is_not_used(experiment, workspace, scores, tmp_path):
    """TRAKer would refuse it, or silently continue with the weights of another model."""
    (spec,) = experiment.scores(traker_method()).inputs.scores
    interrupted = tmp_path / (cache_key(spec) + ".partial") / "trak"
    interrupted.mkdir(parents=True)
    metadata = {"JL dimension": 9, "JL matrix type": "normal", "train set size": 1}
    (interrupted / "metadata.json").write_text(json.dumps(metadata))
    for parent in (experiment.images, experiment.checkpoint(0), experiment.trajectories):
        shutil.copytree(workspace.store.root / cache_key(parent), tmp_path / cache_key(parent))
    artifact = get(spec, dataclasses.replace(workspace, store=Store(tmp_path)))
    np.testing.assert_array_equal(artifact.array("scores.npy").reshape(scores.shape), scores)
    assert sorted(artifact.manifest["checksums"]) == ["metrics.jsonl", "scores.npy"]


def test_what_traker_does_not_support_is_refused(experiment, workspace):
    with pytest.raises(ConfigError, match=r"method\.traker\.projection_dim=100: must be in 101…"):
        traker_method(projection_dim=100).check("method.traker")
    message = r"method\.traker\.num_samples=7: must be even when antithetic=true"
    with pytest.raises(ConfigError, match=message):
        traker_method(antithetic=True, num_samples=7).check("method.traker")
    (spec,) = experiment.scores(traker_method(projection_dim=256)).inputs.scores
    compute = dataclasses.replace(workspace.compute, gradient_memory_gib=0.01)
    message = r"compute\.gradient_memory_gib=0\.01: must be at least 0\.\d+ for this network"
    with pytest.raises(ConfigError, match=message):
        get(spec, dataclasses.replace(workspace, compute=compute))


# ------------------------------------------------------------------------------ method=trak_store

NAMES = ["step600", "step300"]


@pytest.fixture(scope="module")
def stored(experiment, workspace, tmp_path_factory):
    """A store of two models in half precision, which is TRAKer's default, and TRAKer's scores."""
    save_dir = tmp_path_factory.mktemp("trak_results")
    return save_dir, user_script(save_dir, experiment, workspace, half=True)


@pytest.fixture
def copied(stored, tmp_path):
    return shutil.copytree(stored[0], tmp_path / "copied")


def store(path, **changes) -> TrakStore:
    return TrakStore(**{"path": str(path), "experiments": NAMES, "damping": [0.1], **changes})


def edit(file):
    return np.lib.format.open_memmap(file, "r+")


def test_scores_of_a_store_are_our_kernel_on_its_arrays(scores_of, copied):
    q = np.random.default_rng(0).uniform(0.5, 1, (2, 60, 1)).astype(np.float16)
    expected = 0
    for k in range(2):
        edit(copied / f"{k}/out_to_loss.mmap")[:] = q[k]
        arrays = ("grads", *(f"{name}_grads" for name in NAMES))
        phi, *by_step = (np.load(copied / f"{k}/{a}.mmap").astype(np.float64) for a in arrays)
        kernel = phi.T @ phi + 0.1 * np.square(phi).sum() / 60 * np.eye(P)
        expected = expected + np.stack(by_step) @ np.linalg.inv(kernel) @ phi.T / 2
    expected = expected * q.astype(np.float64).mean(0)[:, 0]
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(scores_of(store(copied))[0], expected, rtol=1e-3, atol=atol)


def test_scores_of_a_store_rank_as_traker_does(experiment, workspace, scores_of, stored):
    """TRAKer solves in half precision and weights the two models by its rescaling."""
    path, theirs = stored
    store(path).check("method.mine")
    images = train_images(experiment.images, workspace)
    store(path).check_data("method.mine", experiment.trajectories, images)
    assert agreement(scores_of(store(path))[0], theirs).min() > 0.98


def test_one_experiment_is_for_all_steps(scores_of, stored):
    one = scores_of(store(stored[0], experiments=NAMES[1:]))
    np.testing.assert_allclose(one[:, 0], scores_of(store(stored[0]))[:, 1], rtol=1e-5)


def test_the_cache_key_follows_the_content_of_the_store(experiment, stored, copied):
    assert store(copied).content_hash() == store(stored[0]).content_hash()
    keys = [cache_key(experiment.scores(store(copied)))]
    for name in ("grads", "step300_grads", "out_to_loss"):
        edit(copied / f"1/{name}.mmap")[3] *= 2
        keys.append(cache_key(experiment.scores(store(copied))))
    assert len(set(keys)) == 4
    edit(copied / "1/features.mmap")[3] *= 2  # which TRAKer solved, and is not read
    assert cache_key(experiment.scores(store(copied))) == keys[-1]


def with_value(name, row, number):
    def change(path):
        edit(path / name)[row] = number

    return change


def with_json(name, **changes):
    def change(path):
        (path / name).write_text(json.dumps({**json.loads((path / name).read_text()), **changes}))

    return change


def without(name):
    return lambda path: (path / name).unlink()


NO_STORE = r"must be the save_dir of a trak\.TRAKer"
OTHER_JSON, NOT_FINITE = r"not a store as trak\.TRAKer writes it", " with NaN or infinity in row "
REFUSED = {
    "no directory": (shutil.rmtree, NO_STORE),
    "no metadata": (without("metadata.json"), NO_STORE),
    "other metadata": (with_json("metadata.json", **{"JL dimension": "many"}), OTHER_JSON),
    "broken JSON": (lambda path: (path / "experiments.json").write_text("{"), OTHER_JSON),
    "a list": (lambda path: (path / "experiments.json").write_text("[]"), OTHER_JSON),
    "no model": (
        lambda path: [file.unlink() for file in path.glob("id_*")],
        r"without a model: must be featurized",
    ),
    "unfinished": (
        with_json("id_1.json", **{"1": {"is_featurized": 0, "is_finalized": 0}}),
        r"model \[1\] unfinished: must be",
    ),
    "deleted gradients": (without("0/grads.mmap"), r"0/grads\.mmap, missing: must be there"),
    "a target of one model": (without("1/step300_grads.mmap"), r"1/step300_grads\.mmap, missing"),
    "no array": (
        lambda path: (path / "1/grads.mmap").write_bytes(b"x" * 100),
        r"1/grads\.mmap: not an array of numbers",
    ),
    "fewer images": (
        with_json("metadata.json", **{"train set size": 50}),
        r"of shape \(60, 128\): must be of \(50, 128\)",
    ),
    "NaN": (with_value("1/grads.mmap", 7, np.nan), r"1/grads\.mmap" + NOT_FINITE + "7"),
    "infinity": (with_value("0/step600_grads.mmap", 3, np.inf), "step600_.*" + NOT_FINITE + "3"),
    "NaN in Q": (with_value("0/out_to_loss.mmap", 3, np.nan), r"loss\.mmap" + NOT_FINITE + "3"),
    "unfinished scoring": (
        with_value("0/step600_grads.mmap", 2, 0),
        "only zeros in row 2: must be",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_store_is_refused_in_one_line(case, copied):
    change, message = REFUSED[case]
    change(copied)
    with pytest.raises(ConfigError, match=message) as caught:
        store(copied).check("method.mine")
    assert str(caught.value).startswith("method.mine.path=")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [[], ["step600", "step20"], ["step600", "step600"]])
def test_experiments_are_distinct_names_of_the_store(names, stored):
    value = re.escape(f"method.mine.experiments={names}: must be distinct names among those in ")
    with pytest.raises(ConfigError, match=value + ".*: step600, step300"):
        store(stored[0], experiments=names).check("method.mine")


def test_a_store_of_other_images_or_queries_is_refused(experiment, workspace, stored):
    images, trajectories = train_images(experiment.images, workspace), experiment.trajectories
    more = dataclasses.replace(trajectories, num_queries=5)
    three = dataclasses.replace(trajectories, steps=(600, 300, 20))
    fewer = images.take(np.arange(59))
    refused = {
        "path=.* of 60 training images: must be of the 59": (trajectories, fewer),
        "experiments=step600 of 4 targets: must be of the 5 queries": (more, images),
        r"must be one, or one for each of sampling\.steps=\[600, 300, 20\]": (three, images),
    }
    for message, run in refused.items():
        with pytest.raises(ConfigError, match=r"method\.mine\..*" + message):
            store(stored[0]).check_data("method.mine", *run)
