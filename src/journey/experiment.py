"""From the settings of a run to the specs of the artifacts it needs."""

from dataclasses import replace

from journey import config
from journey.specs import Curvature, Evaluate, Featurize, Measure, Sample, Score, Snapshot, Subset, Train, Unlearn


def full_model(run: config.Config, checkpoint: int) -> Train:
    """Checkpoint number `checkpoint`: trained on every training image."""
    return Train(run.dataset, run.model, run.training, run.compute.precision, run.seed, checkpoint)


def subset_model(run: config.Config, index: int, repeat: int) -> Train:
    """Training number `repeat` of subset `index`."""
    subset = Subset(index, run.evaluation.fraction, run.seed)
    return Train(run.dataset, run.model, run.training, run.compute.precision, run.seed, repeat, subset)


def journeys(run: config.Config) -> Sample:
    """The queries, made by checkpoint 0; every other checkpoint is asked about these."""
    sampling = run.sampling
    return Sample(full_model(run, 0), sampling.sampler, sampling.num_inference_steps, sampling.num_queries, run.seed)


def measure(run: config.Config, index: int, repeat: int) -> Measure:
    """The outputs of one retrained model."""
    evaluation, model = run.evaluation, subset_model(run, index, repeat)
    steps = tuple(run.sampling.steps)
    return Measure(model, journeys(run), steps, evaluation.num_draws, evaluation.antithetic, run.seed)


def score(run: config.Config, method: config.Method) -> Score:
    """The scores of one method, with the artifacts it needs."""
    of = Score(method, journeys(run), tuple(run.sampling.steps), run.seed)
    match method:
        case config.GradientMethod():
            models = _models(run, method)
            train = tuple(tuple(_features(run, method, m, None, w) for w in _windows(run, method)) for m in models)
            query = tuple(_features(run, method, model, journeys(run), None) for model in models)
            return replace(of, train_features=train, query_features=query)
        case config.Unlearning():
            return replace(of, unlearned=tuple(_unlearn(run, method, c) for c in range(method.num_checkpoints)))
        case config.Datamodel():
            first = run.evaluation.num_subsets  # the ones before it judge
            return replace(of, outputs=tuple(measure(run, first + i, 0) for i in range(method.num_subsets)))
        case config.NonparametricScore() | config.Pixel() | config.Encoder() | config.Random():
            return of
        case _:
            raise config.ConfigError(f"method.{method.name}: unknown kind of method")


def _models(run: config.Config, method: config.GradientMethod) -> list[Train | Snapshot]:
    """The checkpoints of an ensemble; along a run, evenly spaced between its start and its end."""
    count = method.num_checkpoints
    if method.ensemble is config.Ensemble.seeds:
        return [full_model(run, checkpoint) for checkpoint in range(count)]
    snapshots: list[Snapshot] = []
    for k in range(1, count + 1):
        step = run.training.num_steps * k // (count + 1)
        snapshots.append(Snapshot(full_model(run, 0), step, snapshots[-1] if snapshots else None))
    return snapshots


def _windows(run: config.Config, method: config.GradientMethod) -> list[tuple[int, int] | None]:
    """The timesteps of the training images for each step: as many as asked for, around it, within the schedule."""
    if not method.train_window:
        return [None]
    last = run.model.num_timesteps - method.train_window
    starts = [min(max(0, t - method.train_window // 2), last) for t in run.sampling.steps]
    return [(start, start + method.train_window) for start in starts]


def _features(
    run: config.Config,
    method: config.GradientMethod,
    model: Train | Snapshot,
    queries: Sample | None,
    window: tuple[int, int] | None,
) -> Featurize:
    destination = queries is None or method.at is config.At.destination
    whitened = method.kernel is config.Kernel.ekfac
    return Featurize(
        model=model,
        journeys=queries,
        steps=None if destination else tuple(run.sampling.steps),
        window=window,
        output=method.output,
        normalize=method.normalize,
        num_draws=method.num_draws,
        stratified=method.stratified,
        antithetic=method.antithetic,
        precision=method.precision,
        curvature=Curvature(model, method.precision, run.seed) if whitened else None,
        damping=tuple(method.damping) if whitened else (),
        projection=method.projection,
        projection_dim=0 if method.projection is config.Projection.none else method.projection_dim,
        seed=run.seed,
    )


def _unlearn(run: config.Config, method: config.Unlearning, checkpoint: int) -> Unlearn:
    model = full_model(run, checkpoint)
    return Unlearn(
        model=model,
        curvature=Curvature(model, method.precision, run.seed),
        journeys=journeys(run),
        steps=None if method.at is config.At.destination else tuple(run.sampling.steps),
        num_draws=method.num_draws,
        precision=method.precision,
        damping=method.damping,
        rise=tuple(method.rise),
        seed=run.seed,
    )


def evaluate(run: config.Config) -> Evaluate:
    """The whole experiment."""
    subsets, repeats = range(run.evaluation.num_subsets), range(run.evaluation.num_seeds)
    outputs = tuple(tuple(measure(run, index, repeat) for repeat in repeats) for index in subsets)
    scores = {name: score(run, method) for name, method in run.judged.items()}
    return Evaluate(run.evaluation, scores, outputs, tuple(run.sampling.steps), run.seed)
