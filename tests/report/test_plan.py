"""Plans: numbers of artifacts, their sizes, and their costs."""

import dataclasses
import re

import numpy as np
import pytest
from conftest import journey_trak, small_run
from safetensors.numpy import load_file

from journey.attribution.baselines import Pixel
from journey.attribution.gradient import Featurize
from journey.data.embedded import Digits, Twemoji
from journey.diffusion.latent import LatentDiffusion
from journey.engine.costs import RATES, Cost, Rate, Rates, StageCost, estimate_cost, write_rates
from journey.engine.graph import ancestors
from journey.engine.store import StoreError
from journey.engine.workspace import get
from journey.evaluation.lds import LDS
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.settings import Kernel, Projection, Sampler, Sampling, Storage, Training
from journey.report import plan


@pytest.fixture
def run():
    return small_run(
        training=Training(num_steps=5, batch_size=16, warmup_steps=1),
        method={"a": journey_trak(), "b": Pixel()},
    )


@pytest.fixture
def target(run, workspace):
    return load_experiment(run, workspace.store).evaluation(run.evaluation, run.all_methods)


def lines(capsys) -> dict[str, list[str]]:
    """Return the cells by stage, and the caption."""
    *table, below = capsys.readouterr().out.partition("└")
    rows = [re.split("[│┃]", line)[1:-1] for line in table[0].splitlines() if line[0] in "│┃"]
    text = " ".join(line.strip() for line in below.splitlines()[1:])
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows} | {"below": [text]}


PROJECTIONS = {
    **{projection.value: {"projection": projection} for projection in Projection},
    "kronecker, small rank": {"projection": Projection.kronecker, "projection_rank": 3},
    "none, fp16": {"projection": Projection.none, "storage": Storage.fp16},
    "kronecker, int8": {"projection": Projection.kronecker, "storage": Storage.int8},
    "sparse, int8": {"storage": Storage.int8},
    "ekfac": {"kernel": Kernel.ekfac, "damping": [0.1, 1.0]},
    "ekfac, kronecker": {"kernel": Kernel.ekfac, "projection": Projection.kronecker},
}


def array_bytes(directory) -> int:
    """Return the bytes of all arrays and tensors of an artifact."""
    total = sum(np.load(path).nbytes for path in directory.glob("*.npy"))
    for path in directory.glob("*.safetensors"):
        total += sum(array.nbytes for array in load_file(path).values())
    return total


def test_forecasts_are_the_bytes_of_every_projection_and_storage(workspace):
    run = small_run(
        dataset=Digits(num_train=8),
        training=Training(num_steps=1, batch_size=8, warmup_steps=0),
        sampling=Sampling(Sampler.ddim, 5, num_queries=4, steps=[600, 200]),
        evaluation=LDS(paired_steps=[600]),
    )
    experiment = load_experiment(run, workspace.store)
    get(experiment.checkpoint(0), workspace)
    stages = set()
    for name, changes in PROJECTIONS.items():
        score = experiment.scores(journey_trak(num_samples=2, projection_dim=64, **changes))
        get(score, workspace)
        specs = [score, *ancestors(score)]
        parameters = plan.parameter_shapes(specs, workspace.store)
        for spec in specs:
            artifact = get(spec, workspace)
            forecast = estimate_cost(spec, [], None, parameters).size
            if spec.folder == "images":
                assert forecast is None
                continue
            assert forecast == array_bytes(artifact.path), (name, spec.label)
            stages.add(spec.stage)
    assert stages == {"train", "sample", "featurize", "ekfac", "score"}


def test_without_a_model_what_it_decides_is_unknown_and_nothing_is_scaled(workspace, capsys):
    """An artifact of a sparse projection says nothing of the size of another."""
    for projection in (Projection.none, Projection.kronecker):
        run = small_run(method={"a": journey_trak(projection=projection)})
        experiment = load_experiment(run, workspace.store)
        (train,), *_ = experiment.scores(run.method["a"]).inputs.train
        assert estimate_cost(train, [StageCost(train.work, 2.0)], None) == Cost(2.0, None)
        target = experiment.evaluation(run.evaluation, run.all_methods)
        plan.show_plan(target, workspace.store, workspace.compute)
        cells = lines(capsys)
        assert cells["featurize"][4] == "unknown"
        assert cells["total"][4].startswith("> ")
        assert "unknown where a network or a file decides" in cells["below"][0]


def test_conditions_and_continuations_are_counted(workspace):
    run = small_run(
        model=LatentDiffusion(block_out_channels=[8, 16]),
        dataset=Twemoji(num_train=8),
        sampling=Sampling(Sampler.ddpm, 5, num_queries=4, steps=[600, 200]),
        evaluation=LDS(paired_steps=[600]),
    )
    experiment = load_experiment(run, workspace.store)
    latent, condition = 4 * 8 * 8, 12 * 384
    assert experiment.trajectories.size == 4 * 4 * (5 * latent + condition)
    assert experiment.own_continuations(600, 5).size == 4 * 4 * 6 * latent


def test_sizes_are_those_of_the_arrays(run, workspace):
    experiment = load_experiment(run, workspace.store)
    ekfac = experiment.scores(journey_trak(kernel=Kernel.ekfac, damping=[0.1, 1.0]))
    scores = [experiment.scores(method) for method in run.method.values()]
    every = [
        *scores,
        ekfac,
        *ancestors(ekfac),
        *ancestors(scores[0]),
        experiment.outputs(experiment.checkpoint(0)),
    ]
    sized = [spec for spec in every if spec.size is not None]
    assert {spec.folder for spec in sized} == {"scores", "features", "trajectories", "outputs"}
    for spec in sized:
        arrays = get(spec, workspace).path.glob("*.npy")
        assert spec.size == sum(np.load(path).nbytes for path in arrays), spec.label


def test_similar_artifacts_come_before_measured_rates(target):
    spec = target.trajectories.checkpoint
    similar, other = StageCost(spec.work / 2, 10.0), StageCost(spec.work / 100, 1.0)
    rate = Rate(spec.work / 4, 1.0, size=80)
    assert estimate_cost(spec, [], None) == Cost(None, None)
    assert estimate_cost(spec, [other], None) == Cost(None, None), (
        "it may be fixed to the most part"
    )
    assert estimate_cost(spec, [other], rate) == Cost(4.0, 80, measured=True)
    slow_start = dataclasses.replace(rate, fixed_seconds=3.0)
    assert estimate_cost(spec, [], slow_start) == Cost(7.0, 80, measured=True)
    assert estimate_cost(spec, [similar], rate) == Cost(20.0, 80)


def test_a_part_of_the_time_is_fixed_if_the_costs_of_other_works_say_so(target):
    spec = target.trajectories.checkpoint
    fixed, slope = 7.0, 3.0 / spec.work
    costs = []
    for share in (0.3, 1 / 9, 1e-3):
        costs.append(StageCost(spec.work * share, fixed + slope * spec.work * share))
    assert estimate_cost(spec, costs, None) == Cost(pytest.approx(10.0, rel=1e-6), None)
    assert estimate_cost(spec, costs[:1], None).seconds == pytest.approx(costs[0].seconds / 0.3)
    faster = [StageCost(spec.work / 2, 1.0), StageCost(spec.work / 8, 1.2)]
    assert estimate_cost(spec, faster, None) == Cost(1.0 + 0.0, None), "none is negative"


def test_preconditioned_and_normalised_gradients_have_rates_of_their_own(run, workspace):
    experiment, names = load_experiment(run, workspace.store), set()
    for changes in ({}, {"normalize": True}, {"kernel": Kernel.ekfac}):
        score = experiment.scores(journey_trak(**changes))
        names |= {spec.rate_name for spec in ancestors(score) if isinstance(spec, Featurize)}
    assert names == {"featurize", "featurize normalized", "featurize preconditioned"}


def test_a_plan_has_numbers_sizes_and_unknown_costs(target, workspace, capsys):
    plan.show_plan(target, workspace.store, workspace.compute)
    cells = lines(capsys)
    assert cells["stage"] == ["artifacts", "cached", "to compute", "worker-hours", "MiB"]
    assert cells["train"] == ["9", "0", "9", "unknown", "unknown"]
    assert cells["featurize"] == ["2", "0", "2", "unknown", "0.066"], "68 × 256 numbers"
    assert cells["total"][3:] == ["unknown", "> 0.078"], (
        "and 1,440 scores, 216 outputs, 1,280 numbers of trajectories"
    )
    assert (
        "models: 1 on all images, 8 retrained; gradients: 544 images × noise samples"
        in cells["below"][0]
    )
    assert "measured" not in cells["below"][0]


def test_a_plan_uses_rates_measured_on_this_kind_of_device(target, workspace, capsys):
    train = target.trajectories.checkpoint
    cuda, store = Local(device="cuda:0"), workspace.store
    rates = {"train": Rate(train.work / 10, 360.0, size=2**20), "measure": Rate(1e-6, 1e9)}
    write_rates(store.root, train.model.label, cuda, Rates("as measured on a card", rates))
    write_rates(
        store.root,
        train.model.label,
        Local(device="cuda"),
        Rates("as measured on a card", {"train": rates["train"]}),
    )
    write_rates(
        store.root,
        dataclasses.replace(train.model, block_out_channels=[8]).label,
        cuda,
        Rates("as another", rates),
    )
    plan.show_plan(target, store, cuda)
    cells = lines(capsys)
    assert cells["stage"][3] == "GPU-hours"
    assert cells["train"] == ["9", "0", "9", "9.0", "9.0"]
    assert (cells["measure"][3], cells["total"][3]) == ("unknown", "> 9.0")
    assert "where there are none, as measured on a card" in cells["below"][0]
    plan.show_plan(target, store, workspace.compute)
    assert lines(capsys)["train"][3:] == ["unknown", "unknown"], "on another device"


def test_damaged_rates_are_one_line(target, workspace):
    store = workspace.store
    store.check_writable()
    for text in (
        "{",
        "[1]",
        '{"ddpm8-16 cpu fp32": {"source": "x"}}',
        '{"ddpm8-16 cpu fp32": {"source": "x", "by_name": {"train": {"a": 1}}}}',
    ):
        (store.root / RATES).write_text(text)
        with pytest.raises(
            StoreError,
            match=r"rates\.json: unreadable \(.*\); delete .*rates\.json to plan without it$",
        ):
            plan.show_plan(target, store, workspace.compute)
