"""Write the report of a run: result.json, texts, figures, the page, and tables on the terminal."""

import contextlib
import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from journey.config.run import RunConfig
from journey.data.duplicates import INJECTED
from journey.data.images import describe_images, train_images
from journey.diffusion.trajectories import (
    decode_pictures,
    estimate_pictures,
    noisy_pictures,
    query_prompts,
)
from journey.engine.checks import ConfigError
from journey.engine.graph import ancestors
from journey.engine.owned import OwnedFiles
from journey.engine.provenance import git_state, package_versions
from journey.engine.spec import cache_key, describe
from journey.engine.store import Store, changed_values
from journey.engine.workspace import Workspace, get
from journey.evaluation import plots
from journey.evaluation.planted import duplicate_indices
from journey.evaluation.rows import in_order, select, without_pairs_of_variants
from journey.pipeline.images import ImageSet, read_images
from journey.pipeline.interfaces import (
    Autoencoder,
    Evaluate,
    Evaluation,
    Experiment,
    FullData,
    Images,
    Method,
    Result,
    Row,
    Sample,
    Score,
    Train,
)
from journey.pipeline.settings import Start, Target
from journey.report import figures, tables
from journey.report.directory import (
    FIGURE,
    PAGE,
    PREVIEW,
    RESULT,
    SAMPLES,
    TRAINING_IMAGES,
    report_files,
)
from journey.report.page import (
    PageFigure,
    PageMethod,
    PageTrajectories,
    page_contents,
    page_html,
    rank_candidates,
    rank_images,
)
from journey.tracking import BY_TIMESTEP, TIMESTEP

MOST_CHANGES = 5  # settings that are shown where a report replaces another
PAGE_PIXELS = 128  # of an inch of a figure on the page
MOST_TRACKED = 8  # queries whose pictures a tracker gets


def write_report(
    run: RunConfig, experiment: Experiment, workspace: Workspace, directory: Path, words: str = ""
) -> Result:
    """Return the result, after computing it and replacing the files of the report together.

    Every figure is written as .png for a screen and as .pdf for print. The figure of trajectories
    is written as a preview as soon as there are scores, with the middle one of several dampings,
    and at the end with the chosen one. A tracker is told the `words` that compose the run.
    """
    target = experiment.evaluation(run.evaluation, run.all_methods)
    name, owned = _method_of_steps(run), report_files(run, directory)
    _compute(run, experiment, workspace, name, owned)
    result = _result(run, target, workspace)
    drawn, texts = run.evaluation.figures(result), run.evaluation.texts(result)
    files, changed = list(drawn), _changed_settings(directory, result)
    with owned.replaced() as new_file:
        pictures = [_save(figure, file, new_file) for file, figure in drawn.items()]
        if name is not None:
            figure = _trajectory_figure(run, experiment, workspace, name, result)
            _save(figure, FIGURE, new_file)
            files.append(FIGURE)
        pictures.append(_save_sheets(experiment, workspace, new_file))
        files += [SAMPLES, TRAINING_IMAGES]
        texts = texts | {PAGE: _page(run, experiment, workspace, result, pictures, words)}
        texts[RESULT] = json.dumps(result, indent=1, allow_nan=False) + "\n"
        for file, text in texts.items():
            new_file(file).write_text(text, encoding="utf-8")
    if changed:
        print(f"{directory}: replaces a report of other settings: {changed}", flush=True)
    # A file has no width to which lines are wrapped.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    if quality := result.get("autoencoder", {}).get("psnr_held_out"):
        console.print(f"autoencoder: {quality:.1f} dB PSNR on held-out images")
    for table in run.evaluation.tables(result) or tables.row_tables(result["rows"], run.name):
        console.print(table)
    listed = [*dict.fromkeys([PAGE, RESULT, *texts]), *files]
    print(f"{directory}/: {', '.join(listed)}", flush=True)
    _track(run, experiment, result, directory, files, workspace, words)
    return result


def write_samples(
    run: RunConfig, experiment: Experiment, workspace: Workspace, directory: Path
) -> Path:
    """Return the path of the picture of all final samples, after writing it into a report."""
    with report_files(run, directory).replaced(keep=True) as new_file:
        samples = _sample_pictures(experiment, workspace)
        figures.contact_sheet(samples).save(new_file(SAMPLES))
    return directory / SAMPLES


def _save_sheets(
    experiment: Experiment, workspace: Workspace, new_file: Callable[[str], Path]
) -> PageFigure:
    """Return the picture of training images, after saving it and that of the final samples."""
    images = experiment.images
    train = train_images(images, workspace).images[figures.shown_in_sheet(images.num_train)]
    figures.contact_sheet(_sample_pictures(experiment, workspace)).save(new_file(SAMPLES))
    path, caption = new_file(TRAINING_IMAGES), f"{len(train)} of {images.num_train} training images"
    sheet = figures.contact_sheet(train)
    sheet.save(path)
    return PageFigure(path, caption, sheet.width, is_plot=False)


def _sample_pictures(experiment: Experiment, workspace: Workspace) -> np.ndarray:
    """Return the final samples that a contact sheet shows, uint8 [B, C, H, W]."""
    spec = experiment.trajectories
    final = get(spec, workspace).array("final.npy")[figures.shown_in_sheet(spec.num_queries)]
    pictures = decode_pictures(final, spec, workspace)
    return np.rint(np.clip(pictures, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def _method_of_steps(run: RunConfig) -> str | None:
    """Return the name of the first method that scores steps, or None."""
    num_steps = len(run.sampling.steps)
    for name, method in run.method.items():
        if method.target is Target.step and method.num_scores(num_steps) == num_steps:
            return name
    return None


def _compute(
    run: RunConfig,
    experiment: Experiment,
    workspace: Workspace,
    name: str | None,
    owned: OwnedFiles,
) -> None:
    """Compute the result, and draw the trajectories as soon as there are scores for them."""
    target = experiment.evaluation(run.evaluation, run.all_methods)
    scores = [experiment.scores(run.method[name])] if name is not None else []
    waiting = {cache_key(spec) for spec in scores if workspace.store.find(spec) is None}
    drawn = False
    for spec in workspace.compute.make([*scores, target], workspace):
        waiting.discard(cache_key(spec))
        if name is not None and not waiting and not drawn and spec is not target:
            figure = _trajectory_figure(run, experiment, workspace, name, None)
            drawn = True
            # What is in the way is an error at the end, when everything is computed.
            with contextlib.suppress(ConfigError):
                with owned.replaced(keep=True) as new_file:
                    plots.save_figure(figure, new_file(PREVIEW))
                path = owned.directory / PREVIEW
                print(f"{path}: training images that influenced each step", flush=True)


def _result(run: RunConfig, target: Evaluate, workspace: Workspace) -> dict:
    """Return the evaluation's result with settings, commit, cache keys and costs."""
    evaluated = json.loads((get(target, workspace).path / "result.json").read_text())
    specs, store = ancestors(target), workspace.store
    seconds: defaultdict[str, float] = defaultdict(float)
    size: defaultdict[str, float] = defaultdict(float)
    checkpoints, autoencoder = [], {}
    images = target.trajectories.checkpoint.images
    for spec in specs:
        cost = store.cost(spec)
        if cost is not None:
            seconds[spec.stage] += cost["seconds"]
            size[spec.stage] += cost["bytes"]
            if isinstance(spec, Autoencoder):
                autoencoder = {"autoencoder": cost["metadata"]}
        if isinstance(spec, Train) and spec.subset == FullData():
            checkpoints.append(cache_key(spec))
    settings = {}
    for f in fields(run):
        if f.name not in ("artifacts", "reports", "task"):
            settings[f.name] = describe(getattr(run, f.name))
    return {
        **with_run_info(run, evaluated),
        **autoencoder,
        "data": describe_images(run.dataset, train_images(images, workspace)),
        "cost": {name: method_cost(score, store) for name, score in target.scores.items()},
        "seconds": _with_total(seconds),
        "bytes": _with_total(size),
        "settings": settings,
        "cache_keys": {
            "evaluation": cache_key(target),
            "images": cache_key(images),
            "trajectories": cache_key(target.trajectories),
            "checkpoints": sorted(checkpoints),
            "scores": {name: cache_key(score) for name, score in target.scores.items()},
        },
        "commit": git_state(),
        "versions": package_versions(),
    }


def _with_total(by_stage: dict[str, float]) -> dict[str, float]:
    total = by_stage | {"total": sum(by_stage.values())}
    return {stage: round(value, 1) for stage, value in total.items()}


def with_run_info(run: RunConfig, evaluated: dict) -> dict:
    """Return the result of an evaluation with what its tables and figures show of the run.

    Methods are in the order of the run, whatever the order when a cached result was computed.
    """
    info = {"experiment": run.name, "dataset": run.dataset.label, "model": run.model.label}
    names = list(run.all_methods)
    variants = [name for name in names if name not in run.method]
    rows = in_order(evaluated["rows"], names)
    ordered: dict[str, object] = {"rows": without_pairs_of_variants(rows, list(run.method))}
    for key, value in evaluated.items():
        if isinstance(value, dict) and set(value) == set(names):
            ordered[key] = {name: value[name] for name in names}
    settings = {"variants": variants, "variant_axes": variant_axes(run)}
    return {**info, **settings, **evaluated, **ordered}


def variant_axes(run: RunConfig) -> dict[str, list[tuple[str, str]]]:
    """Return the settings in which variants of the first method differ: (value, method) of each.

    Values are in rising order where they are numbers.
    """
    base, method = next(iter(run.method.items()))
    axes: dict[str, dict] = {}
    for axis, variant in run.vary.variants(base, method).values():
        if axis == "target":
            continue
        points = axes.setdefault(axis, {})
        if not points and axis != "damping":  # the base method chooses among several dampings
            points[_setting(method, axis)] = base
        position = list(run.all_methods.values()).index(variant)
        points[_setting(variant, axis)] = list(run.all_methods)[position]
    result = {}
    for axis, points in axes.items():
        result[axis] = [(str(value), name) for value, name in sorted(points.items())]
    return result


def _setting(method: Method, axis: str) -> float | str:
    """Return the value of a method's setting; the first one of a list."""
    value = vars(method)[axis]
    if isinstance(value, Enum):
        return value.value
    return value[0] if isinstance(value, list) else value


def shown_candidate(method: Method, name: str, evaluation: Evaluation, result: dict | None) -> int:
    """Return the index of the hyper-parameter value that a method is shown with.

    It is the one that the evaluation chose, if any, or the middle one.

    Args:
        method: The method.
        name: Its name in the run.
        evaluation: The evaluation of the run.
        result: Its result, or None if it is not computed yet.
    """
    candidates = method.candidates()
    chosen = evaluation.chosen(result, name) if result is not None else None
    return candidates.index(chosen) if chosen else len(candidates) // 2


def candidate_text(method: Method, index: int) -> str:
    """Return a hyper-parameter value as text; "" if the method has none.

    >>> from journey.attribution.gradient import GradientMethod
    >>> candidate_text(GradientMethod(damping=[0.1, 1.0]), 1)
    'damping 1'
    """
    return ", ".join(f"{key} {value:g}" for key, value in method.candidates()[index].items())


def method_cost(score: Score, store: Store) -> dict[str, float]:
    """Return what a method's scores cost, without the models and trajectories that they explain.

    Features that methods share count for each. `gradients` are backward passes, one for each
    example and noise sample.
    """
    total = {"seconds": 0.0, "gradients": 0, "bytes": 0}
    for spec in [score, *ancestors(score)]:
        on_all = isinstance(spec, Train) and spec.subset == FullData()
        explained = on_all or isinstance(spec, Sample | Images)
        if not explained and (cost := store.cost(spec)) is not None:
            total["seconds"] += cost["seconds"]
            total["bytes"] += cost["bytes"]
            total["gradients"] += cost["metadata"].get("gradients", 0)
    return total | {"seconds": round(total["seconds"], 1)}


def _changed_settings(directory: Path, result: dict) -> str:
    """Return the settings in which a report differs from the one that it replaces, as a text."""
    try:
        before = json.loads((directory / RESULT).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    changes = []
    for name, old, new in changed_values(before, result["settings"]):
        changes.append(f"{name}: {old} → {new}")
    if (more := len(changes) - MOST_CHANGES) > 0:
        changes[MOST_CHANGES:] = [f"and {more} more"]
    return "; ".join(changes)


def _save(figure: Figure, name: str, new_file: Callable[[str], Path]) -> PageFigure:
    """Return a figure for the page, after writing it as .png and .pdf."""
    plots.plain_texts(figure)  # that of a user's evaluation too
    path = new_file(name)
    plots.save_figure(figure, path)
    plots.save_figure(figure, new_file(str(Path(name).with_suffix(".pdf"))))
    width, is_plot = round(PAGE_PIXELS * figure.get_figwidth()), figure.get_gid() != plots.PICTURES
    return PageFigure(path, figure.get_suptitle(), width, is_plot)


def _trajectory_figure(
    run: RunConfig, experiment: Experiment, workspace: Workspace, name: str, result: dict | None
) -> Figure:
    """Return the figure of two trajectories with a method's proponents and opponents."""
    method = run.method[name]
    index = shown_candidate(method, name, run.evaluation, result)
    scores = get(experiment.scores(method), workspace).array("scores.npy")[index]
    images = train_images(experiment.images, workspace)
    trajectories = attributed_trajectories(experiment, images, scores, workspace)
    label = ", ".join(filter(None, (name, candidate_text(method, index))))
    title = f"{run.name}: training images that influenced each step ({label})"
    queries = figures.distinct_queries(trajectories.x0_hat[-1])
    return figures.trajectory_figure(trajectories, title, queries)


def attributed_trajectories(
    experiment: Experiment, images: ImageSet, scores: np.ndarray, workspace: Workspace
) -> figures.AttributedTrajectories:
    """Return the trajectories with scores [S or 1, Q, N] of the training images."""
    return figures.AttributedTrajectories(
        steps=experiment.steps,
        x0_hat=estimate_pictures(experiment.trajectories, experiment.steps, workspace),
        train=images.images,
        scores=scores,
        labels=list(map(images.describe, range(len(images)))),
        ids=images.ids,
        prompts=_query_names(experiment.trajectories, images.class_names),
    )


def _query_names(sample: Sample, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the prompts or classes of the queries, the names of their files, or nothing."""
    return query_prompts(sample, class_names) if sample.images is None else sample.images.names


def _page(
    run: RunConfig,
    experiment: Experiment,
    workspace: Workspace,
    result: dict,
    pictures: list[PageFigure],
    words: str = "",
) -> str:
    """Return the page: all trajectories, and the first and last images by every method."""
    sample, steps = experiment.trajectories, experiment.steps
    images = train_images(experiment.images, workspace)
    methods = _page_methods(run, experiment, workspace, result)
    trajectories = PageTrajectories(
        steps,
        noisy_pictures(sample, steps, workspace),
        estimate_pictures(sample, steps, workspace),
        decode_pictures(get(sample, workspace).array("final.npy"), sample, workspace),
        _query_names(sample, images.class_names),
    )
    origin = {"command": f"journey {words}"} if words else {}
    if (state := git_state()) is not None:
        origin["commit"] = f"{state['commit']}{' and changes' if state['dirty'] else ''}"
    curves, variants = run.evaluation.curves(result), result["variants"]
    duplicates = None
    if run.sampling.start is Start.injected:
        originals = read_images(get(experiment.images, workspace).path / INJECTED)
        duplicates = duplicate_indices(images, originals)
    contents = page_contents(trajectories, methods, images, curves, variants, origin, duplicates)
    about = (
        f"{len(images)} training images of {result['dataset']}, model {result['model']}, "
        f"{sample.num_queries} queries. {'; '.join(result['data'])}."
    )
    return page_html(run.name, about, contents, pictures)


def _page_methods(
    run: RunConfig, experiment: Experiment, workspace: Workspace, result: dict
) -> dict[str, PageMethod]:
    """Return the methods, and their variants that differ in the target alone, with all candidates.

    The target is the output that is attributed: of the step, the trajectory or the final sample.
    """
    # 1. The methods that are reached from each method of the run.
    methods, targets = run.all_methods, dict[str, dict[str, str]]()
    chosen_as = {name: name for name in run.method}
    for base in run.method:
        method, targets[base] = methods[base], {}
        if "target" not in [f.name for f in fields(method)]:
            continue
        for target in Target:
            setting = {"target": target}  # not every method has it
            changed = replace(method, **setting)
            for name, other in methods.items():
                if other == changed:
                    targets[base][target.value] = name
                    chosen_as.setdefault(name, base)

    # 2. Their ranked images.
    scores, settings, shown = {}, {}, {}
    for name in chosen_as:
        method = methods[name]
        scores[name] = get(experiment.scores(method), workspace).array("scores.npy")
        texts = [candidate_text(method, i) for i in range(len(method.candidates()))]
        settings[name] = [text.replace("damping ", "damping λ = ") for text in texts]
        shown[name] = shown_candidate(method, name, run.evaluation, result)
    page_methods = {}
    for name, rankings in rank_candidates(scores, settings, shown).items():
        used = run.evaluation.chosen(result, name) is not None
        reason = "used by the evaluation" if used else "the middle value"
        base = chosen_as[name]
        page_methods[name] = PageMethod(rankings, shown[name], reason, targets[base], base)
    return page_methods


def _track(
    run: RunConfig,
    experiment: Experiment,
    result: dict,
    directory: Path,
    files: list[str],
    workspace: Workspace,
    words: str = "",
) -> None:
    """Log curves over t, intervals, the rows, the queries with their proponents, and the page."""
    name = f"{run.name} {_without_experiment(words)}".strip() + "-report"
    key, keys = result["cache_keys"]["evaluation"], result["cache_keys"]
    config = result["settings"] | {"command": f"journey {words}".strip()}
    with workspace.tracking.watch(key, name, workspace.group, "report", config) as log:
        if log is None:
            return
        # 1. A curve over t for every method.
        for t in experiment.steps:
            values: dict[str, float] = {TIMESTEP: t}
            for row in select(result["rows"], step=t):
                if row.get("score_transform", "linear") == "linear":
                    values |= _named_interval(row, BY_TIMESTEP)
            if len(values) > 1:
                log(values)

        # 2. The numbers of the headline's targets, with their intervals.
        logged: dict[str, object] = {"tables/rows": result["rows"], "page": directory / PAGE}
        headline = run.evaluation.headline(result)
        targets = {row["target"] for row in headline}
        for row in [*result["rows"], *headline]:
            linear = row.get("score_transform", "linear") == "linear"
            if "step" not in row and linear and row["target"] in targets:
                logged |= _named_interval(row, str(row["target"]))
        for row in headline:
            logged[f"{row['quantity']}/{row['method']}/{row['target']}"] = row["value"]

        # 3. Pictures, and the artifacts.
        if (method := _method_of_steps(run)) is not None:
            logged["tables/queries"] = _query_rows(run, experiment, workspace, method, result)
        for file in files:
            logged[f"pictures/{Path(file).stem}"] = directory / file
        for cached in (keys["images"], *keys["checkpoints"]):
            logged[f"inputs/{cached}"] = workspace.store.root / cached
        logged["result"] = directory / RESULT
        log(logged)


def _without_experiment(words: str) -> str:
    """Return overrides without the choice of the experiment, which has a name."""
    return shlex.join(word for word in shlex.split(words) if not word.startswith("experiment="))


def _named_interval(row: Row, group: str) -> dict[str, float]:
    """Return the value of a row and the ends of its interval, by names in a group."""
    against = f"-{row['against']}" if "against" in row else ""
    name = f"{group}/{row['quantity']}/{row['method']}{against}"
    values = {name: float(row["value"])}
    if "low" in row:
        values |= {f"{name}/low": float(row["low"]), f"{name}/high": float(row["high"])}
    return values


def _query_rows(
    run: RunConfig, experiment: Experiment, workspace: Workspace, name: str, result: dict
) -> list[dict[str, object]]:
    """Return a row for some queries at each step: x̂0_t, and the images that a method ranks first.

    Images are arrays uint8.
    """
    method = run.method[name]
    index = shown_candidate(method, name, run.evaluation, result)
    scores = get(experiment.scores(method), workspace).array("scores.npy")[index]
    ranked, images = rank_images(scores, ""), train_images(experiment.images, workspace)
    estimates = estimate_pictures(experiment.trajectories, experiment.steps, workspace)
    rows: list[dict[str, object]] = []
    for query in range(min(MOST_TRACKED, estimates.shape[1])):
        for step, t in enumerate(experiment.steps):
            shown = ranked.rows[min(step, len(ranked.rows) - 1), query]
            proponents = images.images[shown[: len(shown) // 2]]
            picture = np.rint(np.clip(estimates[step, query], -1, 1) * 127.5 + 127.5)
            row = {"query": query, "t": t, "x0_hat": picture.astype(np.uint8)[None]}
            row |= {"method": name, "proponents": proponents}
            for column in ("x0_hat", "proponents"):
                row[column] = np.asarray(figures.contact_sheet(np.asarray(row[column])))
            rows.append(row)
    return rows
