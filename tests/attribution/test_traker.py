"""`trak.TRAKer` as a method, and what it has stored as features: against a user's own script, and against our kernel."""

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
from journey.attribution.traker.stage import LossOutput, asked
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

P, DRAWS, STEPS = 128, 8, (600, 300)
SEED = entropy(0, "traker") % 2**31  # of its projection
RUN = small_run(training=Training(num_steps=60, batch_size=16, warmup_steps=4))


def by_traker(**changes) -> TrakerMethod:
    return TrakerMethod(
        **{
            "num_checkpoints": 1,
            "num_samples": DRAWS,
            "projection_dim": P,
            "damping": [0.1, 10.0],
            **changes,
        }
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(Store(tmp_path_factory.mktemp("store")), RUN.compute, RUN.tracking, "test")


@pytest.fixture(scope="module")
def of(workspace):
    return load_experiment(RUN, workspace.store)


@pytest.fixture(scope="module")
def scores(of, workspace):
    """Of one checkpoint. [damping, step, query, train]"""
    return get(of.scores(by_traker()), workspace).array("scores.npy")


def agreement(ours, theirs) -> np.ndarray:
    """Spearman's correlation over training images, for every step and query."""
    rows = zip(ours.reshape(-1, ours.shape[-1]), theirs.reshape(-1, theirs.shape[-1]), strict=True)
    return np.array([spearmanr(a, b).statistic for a, b in rows])


def script(save_dir, of, workspace, num_models=1, damping=0.1, half=False) -> np.ndarray:
    """What a user of TRAKer writes: 60 images, 4 queries at two steps, λ relative as ours is. Scores [step, query, train]"""
    schedule = RUN.model.schedule(torch.device("cpu"))
    images = RUN.model.encode(train_images(of.images, workspace)).x0
    draws = sample_noise((0, 1000), DRAWS, (1, 8, 8), 0, "attribute")
    models = [
        RUN.model.load(get(of.checkpoint(k), workspace).path, torch.device("cpu"))
        for k in range(num_models)
    ]
    weights = [
        {name: w.clone() for name, w in model.state_dict().items()} for model in models
    ]  # models[0] is overwritten

    def traker(lambda_reg=0.0):
        return TRAKer(
            models[0], LossOutput(schedule, draws), len(images), save_dir, device="cpu", proj_dim=P, projector_seed=SEED,
            lambda_reg=lambda_reg, use_half_precision=half, logging_level=logging.CRITICAL,
        )  # fmt: skip

    featurizing = traker()
    for k in range(num_models):
        featurizing.load_checkpoint(weights[k], k)
        featurizing.featurize([images], num_samples=len(images))
    for k in range(num_models):
        phi = np.load(save_dir / f"{k}/grads.mmap").astype(np.float64)
        scoring = traker(damping * np.square(phi).sum() / len(images))
        scoring.finalize_features([k])
        for t, queries in zip(
            STEPS, query_estimates(of.trajectories, STEPS, workspace), strict=True
        ):
            scoring.task.draws = sample_noise_at(t, DRAWS, (1, 8, 8), 0, "attribute queries", False)
            scoring.start_scoring_checkpoint(f"step{t}", weights[k], k, len(queries))
            scoring.score([queries.x0], num_samples=len(queries))
    finished = traker()
    return np.stack([np.array(finished.finalize_scores(f"step{t}").T) for t in STEPS])


# ------------------------------------------------------------------------------------------------ method=traker


def test_is_what_a_users_own_script_gives(of, workspace, tmp_path):
    """Two checkpoints, averaged as TRAKer does; the batches differ, and round otherwise."""
    ours = get(of.scores(by_traker(num_checkpoints=2, damping=[0.1])), workspace).array(
        "scores.npy"
    )[0]
    theirs = script(tmp_path, of, workspace, num_models=2)
    np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3 * np.abs(theirs).max())
    assert agreement(ours, theirs).min() > 0.999


def test_everything_of_ours_but_its_random_matrix_gives_its_ranks(of, workspace, scores):
    """Our draws, gradients, λ and float64 solve; only P is traker's."""
    exact = of.scores(journey_trak(projection=Projection.none)).inputs
    d = get(exact["train"][0][0], workspace).array("features.npy").shape[1]
    projector = BasicProjector(d, P, SEED, ProjectionType.normal, "cpu")

    def projected(spec):
        return projector.project(
            torch.from_numpy(np.array(get(spec, workspace).array("features.npy"))), 0
        ).numpy()

    ours = np.zeros((2, 8, 60), np.float32)
    kernel_scores(
        ours, projected(exact["train"][0][0]), projected(exact["queries"][0]), [0.1, 10.0]
    )
    assert agreement(ours, scores).min() > 0.999


def test_its_random_matrix_costs_what_ours_of_as_many_dimensions_does(of, workspace):
    """At 2,048 dimensions, against the exact kernel: its ranks agree with those to 0.95, and so do those of our dense one."""
    exact, ours, theirs = (
        get(of.scores(method), workspace).array("scores.npy")
        for method in (
            journey_trak(projection=Projection.none, damping=[10.0]),
            journey_trak(projection=Projection.gaussian, projection_dim=2048, damping=[10.0]),
            by_traker(projection_dim=2048, damping=[10.0]),
        )
    )
    assert agreement(exact, theirs).mean() == pytest.approx(agreement(exact, ours).mean(), abs=0.02)
    assert agreement(exact, theirs).mean() > 0.94


def test_damping_by_the_diagonal_is_another_lambda(of, workspace, scores):
    diagonal = by_traker(damping_unit=DampingUnit.diagonal, damping=[0.1 * P / 60])
    found = get(of.scores(diagonal), workspace).array("scores.npy")
    np.testing.assert_allclose(found[0], scores[0], rtol=1e-3, atol=1e-4 * np.abs(scores[0]).max())


@pytest.mark.parametrize(
    "changes",
    [{}, {"noise_set": 2, "stratified": False}, {"antithetic": True, "first_checkpoint": 1}],
)
def test_asks_what_ours_asks(of, changes):
    ours = of.scores(journey_trak(projection=Projection.none, projection_dim=P, **changes)).inputs
    of_train, of_queries = asked(of.scores(by_traker(**changes)).inputs.scores[0])
    assert (of_train, of_queries) == (ours["train"][0][0], ours["queries"][0])


def test_what_an_interrupted_run_left_is_no_part_of_it(of, workspace, scores, tmp_path):
    """TRAKer would refuse this store, or silently continue with the weights of another model."""
    (spec,) = of.scores(by_traker()).inputs.scores
    begun = tmp_path / (cache_key(spec) + ".partial")
    (begun / "trak").mkdir(parents=True)
    (begun / "trak" / "metadata.json").write_text(
        '{"JL dimension": 9, "JL matrix type": "normal", "train set size": 1}'
    )
    for parent in (of.images, of.checkpoint(0), of.trajectories):
        shutil.copytree(workspace.store.root / cache_key(parent), tmp_path / cache_key(parent))
    made = get(spec, dataclasses.replace(workspace, store=Store(tmp_path)))
    np.testing.assert_array_equal(made.array("scores.npy").reshape(scores.shape), scores)
    assert sorted(made.manifest["checksums"]) == ["metrics.jsonl", "scores.npy"]


def test_what_traker_cannot_do_is_refused(of, workspace):
    with pytest.raises(ConfigError, match=r"method\.traker\.projection_dim=100: must be in 101…"):
        by_traker(projection_dim=100).check("method.traker")
    with pytest.raises(
        ConfigError, match=r"method\.traker\.num_samples=7: must be even when antithetic=true"
    ):
        by_traker(antithetic=True, num_samples=7).check("method.traker")
    (spec,) = of.scores(by_traker(projection_dim=256)).inputs.scores
    cramped = dataclasses.replace(workspace.compute, gradient_memory_gib=0.01)
    with pytest.raises(
        ConfigError,
        match=r"compute\.gradient_memory_gib=0\.01: must be at least 0\.\d+ for this network",
    ):
        get(spec, dataclasses.replace(workspace, compute=cramped))


# -------------------------------------------------------------------------------------------- method=trak_store

NAMES = ["step600", "step300"]


@pytest.fixture(scope="module")
def stored(of, workspace, tmp_path_factory):
    """Of two models, in half precision, which is TRAKer's default."""
    save_dir = tmp_path_factory.mktemp("trak_results")
    return save_dir, script(save_dir, of, workspace, num_models=2, half=True)


@pytest.fixture
def copied(stored, tmp_path):
    return shutil.copytree(stored[0], tmp_path / "copied")


def store(path, **changes) -> TrakStore:
    return TrakStore(**{"path": str(path), "experiments": NAMES, "damping": [0.1], **changes})


def checked(method, of, workspace) -> TrakStore:
    method.check("method.trak_store")
    method.check_data("method.trak_store", of.trajectories, train_images(of.images, workspace))
    return method


def test_scores_of_a_store_are_our_kernel_on_its_arrays(of, workspace, copied):
    quotients = np.random.default_rng(0).uniform(0.5, 1, (2, 60, 1)).astype(np.float16)
    expected = 0
    for k in range(2):
        np.lib.format.open_memmap(copied / f"{k}/out_to_loss.mmap", "r+")[:] = quotients[k]
        phi, *of_steps = (
            np.load(copied / f"{k}/{n}.mmap").astype(np.float64)
            for n in ("grads", *(f"{n}_grads" for n in NAMES))
        )
        kernel = phi.T @ phi + 0.1 * np.square(phi).sum() / 60 * np.eye(P)
        expected = expected + np.stack(of_steps) @ np.linalg.inv(kernel) @ phi.T / 2
    expected = expected * quotients.astype(np.float64).mean(0)[:, 0]
    found = get(of.scores(checked(store(copied), of, workspace)), workspace).array("scores.npy")
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_scores_of_a_store_rank_as_traker_does(of, workspace, stored):
    """But for what it solves in half precision, and for how it weighs two models by its rescaling."""
    path, theirs = stored
    found = get(of.scores(checked(store(path), of, workspace)), workspace).array("scores.npy")[0]
    assert agreement(found, theirs).min() > 0.98


def test_one_experiment_is_of_all_steps(of, workspace, stored):
    one = get(
        of.scores(checked(store(stored[0], experiments=NAMES[1:]), of, workspace)), workspace
    ).array("scores.npy")
    both = get(of.scores(store(stored[0])), workspace).array("scores.npy")
    np.testing.assert_allclose(one[:, 0], both[:, 1], rtol=1e-5)


def test_the_address_follows_what_is_in_the_store(of, stored, copied):
    assert store(copied).content_hash() == store(stored[0]).content_hash()
    before = cache_key(of.scores(store(copied)))
    for name in ("grads", "step300_grads", "out_to_loss"):
        np.lib.format.open_memmap(copied / f"1/{name}.mmap", "r+")[3] *= 2
        after = cache_key(of.scores(store(copied)))
        assert after != before
        before = after
    np.lib.format.open_memmap(copied / "1/features.mmap", "r+")[3] *= (
        2  # what TRAKer solved is not read
    )
    assert cache_key(of.scores(store(copied))) == before


def value(name, row, number):
    def change(path):
        np.lib.format.open_memmap(path / name, "r+")[row] = number

    return change


def said(name, **changes):
    """What a JSON file of the store says, changed."""

    def change(path):
        (path / name).write_text(json.dumps({**json.loads((path / name).read_text()), **changes}))

    return change


REFUSED = {
    "no directory": (shutil.rmtree, r"must be the save_dir of a trak\.TRAKer"),
    "no metadata": (
        lambda path: (path / "metadata.json").unlink(),
        r"must be the save_dir of a trak\.TRAKer",
    ),
    "other metadata": (
        said("metadata.json", **{"JL dimension": "many"}),
        r"no store as trak\.TRAKer writes it",
    ),
    "broken JSON": (
        lambda path: (path / "experiments.json").write_text("{"),
        r"no store as trak\.TRAKer writes it",
    ),
    "a list": (
        lambda path: (path / "experiments.json").write_text("[]"),
        r"no store as trak\.TRAKer writes it",
    ),
    "no model": (
        lambda path: [file.unlink() for file in path.glob("id_*")],
        r"without a model: must be featurized",
    ),
    "unfinished": (
        said("id_1.json", **{"1": {"is_featurized": 0, "is_finalized": 0}}),
        r"model \[1\] unfinished: must be",
    ),
    "deleted gradients": (
        lambda path: (path / "0/grads.mmap").unlink(),
        r"0/grads\.mmap, missing: must be there",
    ),
    "a target of one model": (
        lambda path: (path / "1/step300_grads.mmap").unlink(),
        r"1/step300_grads\.mmap, missing",
    ),
    "no array": (
        lambda path: (path / "1/grads.mmap").write_bytes(b"x" * 100),
        r"1/grads\.mmap: no array of numbers",
    ),
    "fewer images": (
        said("metadata.json", **{"train set size": 50}),
        r"of shape \(60, 128\): must be of \(50, 128\)",
    ),
    "NaN": (
        value("1/grads.mmap", 7, np.nan),
        r"1/grads\.mmap with NaN or infinity in row 7: must be finite",
    ),
    "NaN in a target": (
        value("0/step600_grads.mmap", 3, np.inf),
        r"step600_grads\.mmap with NaN or infinity in row 3",
    ),
    "NaN in Q": (
        value("0/out_to_loss.mmap", 3, np.nan),
        r"out_to_loss\.mmap with NaN or infinity in row 3",
    ),
    "targets not scored to the end": (
        value("0/step600_grads.mmap", 2, 0),
        r"with nothing but zeros in row 2: must be filled",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_store_that_will_not_do_is_refused_in_a_line(case, copied):
    change, message = REFUSED[case]
    change(copied)
    with pytest.raises(ConfigError, match=message) as caught:
        store(copied).check("method.mine")
    assert str(caught.value).startswith("method.mine.path=")
    assert "\n" not in str(caught.value)


EXPERIMENTS = {
    (): r"=\[\]: must be distinct names among those in .*: step600, step300",
    ("step600", "step20"): r"=\['step600', 'step20'\]: must be distinct names among",
    ("step600", "step600"): r"=\['step600', 'step600'\]: must be distinct names among",
}


@pytest.mark.parametrize("names", EXPERIMENTS)
def test_experiments_are_named(names, stored):
    with pytest.raises(ConfigError, match=r"method\.mine\.experiments" + EXPERIMENTS[names]):
        store(stored[0], experiments=list(names)).check("method.mine")


def test_a_store_of_other_images_or_queries_is_refused(of, workspace, stored, copied):
    images, refused = train_images(of.images, workspace), {}
    refused["path=.* of 60 training images: must be of the 59"] = (
        store(stored[0]),
        of.trajectories,
        images.take(np.arange(59)),
    )
    more = dataclasses.replace(of.trajectories, num_queries=5)
    refused["experiments=step600 of 4 targets: must be of the 5 queries"] = (
        store(stored[0]),
        more,
        images,
    )
    three = dataclasses.replace(of.trajectories, steps=(600, 300, 20))
    refused[re.escape("must be one, or one for each of sampling.steps=[600, 300, 20]")] = (
        store(stored[0]),
        three,
        images,
    )
    for message, (method, *of_run) in refused.items():
        with pytest.raises(ConfigError, match=r"method\.mine\..*" + message):
            method.check_data("method.mine", *of_run)
