"""The settings of a run, and the checks that need more than one group of them."""

from dataclasses import dataclass, field, fields, make_dataclass, replace
from enum import Enum
from types import GenericAlias
from typing import Any, get_origin, get_type_hints

from omegaconf import MISSING

from journey.data.folder import query_files
from journey.engine.checks import (
    MOST_METHODS,
    ConfigError,
    expand_paths,
    require,
    require_count,
    require_name,
    require_seed,
    require_types,
)
from journey.engine.spec import Component
from journey.engine.workspace import Compute, Tracking
from journey.pipeline.interfaces import Dataset, Evaluation, Method, Model
from journey.pipeline.settings import (
    Augmentation,
    GradientSettings,
    QueryExample,
    Retraining,
    Sampling,
    Start,
    Target,
    Training,
    unmet_condition,
)


class Task(Enum):
    """What the command does."""

    train = "train"
    sample = "sample"
    attribute = "attribute"
    evaluate = "evaluate"
    report = "report"
    plan = "plan"
    status = "status"
    verify = "verify"
    export = "export"


def _axes() -> list[tuple[str, Any, Any]]:
    """Return a field for every axis: a list of values of the setting."""
    types = get_type_hints(GradientSettings)
    varied = {f.name: types[f.name] for f in fields(GradientSettings) if f.metadata["varies"]}
    axes: list[tuple[str, Any, Any]] = []
    for name, kind in {"target": Target, **varied, "query_example": QueryExample}.items():
        listed = kind if get_origin(kind) is list else GenericAlias(list, (kind,))
        axes.append((name, listed, field(default_factory=list)))
    return axes


@dataclass
class Vary(make_dataclass("Axes", _axes())):  # type: ignore[misc]
    """Axes of ablations: every method is also evaluated with each value, one at a time."""

    def variants(self, name: str, method: Method) -> dict[str, tuple[str, Method]]:
        """Return (axis, changed method) for every variant of a method, by the variant's name.

        The name is `<name>-<field>-<value>`, or `<name>-<value>` for the target. A field without
        effect on the method's scores is no axis of it.

        Args:
            name: The method's name in the run.
            method: The method itself.
        """
        result = {}
        own = [f.name for f in fields(method)]
        for axis, values in vars(self).items():
            if axis not in own or not method.depends_on(axis):
                continue
            for value in values:
                shown = value.value if isinstance(value, Enum) else value
                variant = f"{name}-{shown}" if axis == "target" else f"{name}-{axis}-{shown}"
                candidates = isinstance(getattr(method, axis), list)
                changed = replace(method, **{axis: [value] if candidates else value})
                result[variant] = (axis, changed)
        return result


@dataclass
class RunConfig:
    """All settings of a run. Constructing one checks them."""

    dataset: Dataset = MISSING
    model: Model = MISSING
    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)
    attribution: GradientSettings = field(default_factory=GradientSettings)
    method: dict[str, Method] = MISSING
    vary: Vary = field(default_factory=Vary)
    retraining: Retraining = field(default_factory=Retraining)
    evaluation: Evaluation = MISSING
    compute: Compute = MISSING
    tracking: Tracking = MISSING
    task: Task = Task.report  # what the command does; `journey --help` explains them
    name: str = "adhoc"  # of the experiment: the directory of its report, and its group in W&B
    seed: int = 0  # of everything that is random but the split of a dataset
    # The store of everything that is computed; runs share it.
    artifacts: str = field(default="artifacts", metadata={"path": True})
    # The directory that has the directory of the report, called `name`.
    reports: str = field(default="reports", metadata={"path": True})

    def __post_init__(self) -> None:
        """Check everything that needs neither the data nor this machine.

        Raises:
            ConfigError: A setting is not allowed. The message names it.
        """
        for group, interface in GROUPS.items():
            value = getattr(self, group)
            allowed = f"one of its choices, such as {group}=…"
            require(isinstance(value, interface), group, value, allowed)
        require_types(self)
        expand_paths(self)
        self.model = self.model.resolved()
        if self.sampling.start is Start.images:
            self.sampling.num_queries = len(query_files(self.sampling.images))
        require_name("name", self.name)
        require_seed("seed", self.seed)
        for name in ("artifacts", "reports"):
            path = getattr(self, name)
            require("://" not in path, name, path, "a directory of this machine")
        for group in (*GROUPS, "training", "sampling", "attribution", "retraining"):
            getattr(self, group).check(group)
        self.dataset.check_duplicates("dataset")
        self._check_sampling()
        queries, least = self.sampling.num_queries, self.evaluation.least_queries
        require_count("sampling.num_queries", queries, least)
        self._check_conditions_and_latents()
        self.evaluation.check_run("evaluation", self.sampling, self.model)
        num_samples, num_timesteps = self.retraining.num_samples, self.model.num_timesteps
        require_count("retraining.num_samples", num_samples, most=num_timesteps)
        processes = self.compute.processes
        allowed = "1 with a network that has dropout"
        require(
            processes == 1 or not self.model.has_dropout, "compute.processes", processes, allowed
        )
        self._check_methods()
        self.evaluation.check_objective("evaluation.objective", list(self.all_methods))

    def _check_sampling(self) -> None:
        """Check the steps, and injected images against the dataset and the model."""
        self.sampling.check_schedule("sampling", self.model.num_timesteps, self.model.is_flow)
        self.model.check_sampler("sampling.sampler", self.sampling.sampler)
        guided = self.sampling.guided_outputs and self.sampling.guidance == 1
        allowed = "false with sampling.guidance=1, which is none"
        require(not guided, "sampling.guided_outputs", "true", allowed)
        start, model = self.sampling.start, self.model
        if start is Start.generated:
            return
        allowed = f"generated with evaluation={self.evaluation.name}, which continues trajectories"
        sampled = self.evaluation.continues_trajectories
        require(not sampled, "sampling.start", start.value, allowed)
        allowed = f"generated with model={model.label}: such images are pixels without a condition"
        supported = model.pixels and not model.is_conditional
        require(supported, "sampling.start", start.value, allowed)
        if start is Start.images:
            return
        injected, queries = self.dataset.num_injected, self.sampling.num_queries
        allowed = "generated unless dataset.num_injected is positive"
        require(injected > 0, "sampling.start", "injected", allowed)
        allowed = f"dataset.num_injected={injected} with sampling.start=injected"
        require(queries == injected, "sampling.num_queries", queries, allowed)

    def _check_conditions_and_latents(self) -> None:
        """Check that no setting needs pixels, text or classes where the model has none."""
        model, sampling, training = self.model, self.sampling, self.training
        flips, captions = self.attribution.flips, self.attribution.captions
        if not model.pixels:
            allowed = f"left out with model={model.name}: latents have no mirror image"
            require(not training.flip, "training.flip", training.flip, allowed)
            require(flips is Augmentation.none, "attribution.flips", flips.value, allowed)
        guidance, dropout = sampling.guidance, training.caption_dropout
        if not model.reads_text:
            allowed = f"left as it is with model={model.name}, which reads no text"
            require(captions is Augmentation.none, "attribution.captions", captions.value, allowed)
        if model.is_conditional:
            allowed = "0 with model.null_class=false"
            require(model.null_class or dropout == 0, "training.caption_dropout", dropout, allowed)
            allowed = "1 unless training.caption_dropout is positive, which guidance needs"
            require(guidance == 1 or dropout > 0, "sampling.guidance", guidance, allowed)
            return
        allowed = f"left as it is with model={model.label}, which has no text or class as condition"
        require(not sampling.prompts, "sampling.prompts", sampling.prompts, allowed)
        require(guidance == 1, "sampling.guidance", guidance, allowed)
        require(dropout == 0, "training.caption_dropout", dropout, allowed)

    def _check_methods(self) -> None:
        """Check the methods, their variants, and that every axis varies a method."""
        require(len(self.method) > 0, "method", self.method, "a non-empty list of methods")
        for name in self.method:
            require_name("method", str(name))
        for axis, values in vars(self.vary).items():
            allowed = f"fewer than {MOST_METHODS}"
            require(len(values) < MOST_METHODS, f"vary.{axis}", f"{len(values)} values", allowed)
        variants = [self.vary.variants(name, method) for name, method in self.method.items()]
        total, allowed = len(self.method) + sum(map(len, variants)), f"at most {MOST_METHODS}"
        require(total <= MOST_METHODS, "vary", f"{total} methods", allowed)
        model = self.model
        for name, method in self.all_methods.items():
            where, use = f"method.{name}", f"{name} on {model.label}"
            method.check(where)
            method.check_run(where, model, self.training.num_steps)
            allowed = "used with a model of pixels, such as ddpm_tiny"
            require(model.pixels or not method.needs_pixels, where, use, allowed)
            allowed = "used with a model of latents, such as ldm_tiny"
            require(not (model.pixels and method.needs_latents), where, use, allowed)
            allowed = "used with a model that reads text, such as ldm_tiny"
            require(model.reads_text or not method.needs_text, where, use, allowed)
        varied = {axis for of_method in variants for axis, _ in of_method.values()}
        for axis, values in vars(self.vary).items():
            shown = [value.value if isinstance(value, Enum) else value for value in values]
            require(len(set(values)) == len(values), f"vary.{axis}", shown, "distinct")
            allowed = f"empty: it has no effect on {', '.join(self.method)}"
            require(axis in varied or not values, f"vary.{axis}", shown, allowed)

    def without_effect(self) -> dict[str, str]:
        """Return the settings without effect, with the values of others that would give them one.

        A setting of `attribution` has none if it has none on any method that shares it.
        """
        conditions: dict[str, str] = {}
        by_method: dict[str, list[str]] = {}
        for group in (*GROUPS, "training", "sampling", "retraining"):
            settings = getattr(self, group)
            for f in fields(settings):
                conditions[f"{group}.{f.name}"] = unmet_condition(settings, f.name)
        shared = [f.name for f in fields(GradientSettings)]
        for name, method in self.all_methods.items():
            for f in fields(method):
                condition = unmet_condition(method, f.name)
                conditions[f"method.{name}.{f.name}"] = condition
                if f.name in shared:
                    by_method.setdefault(f.name, []).append(condition)
        for name, of_methods in by_method.items():
            conditions[f"attribution.{name}"] = of_methods[0] if all(of_methods) else ""
        return {name: condition for name, condition in conditions.items() if condition}

    @property
    def all_methods(self) -> dict[str, Method]:
        """Return the chosen methods, then their variants, each once.

        Raises:
            ConfigError: A variant has the name of a method.
        """
        methods = dict(self.method)
        for name, method in self.method.items():
            for variant, (_, changed) in self.vary.variants(name, method).items():
                if variant in self.method:
                    raise ConfigError(f"vary: {variant} is the name of a method; rename the method")
                if changed not in methods.values():
                    methods[variant] = changed
        return methods


GROUPS: dict[str, type[Component]] = {
    "dataset": Dataset,
    "model": Model,
    "evaluation": Evaluation,
    "compute": Compute,
    "tracking": Tracking,
}
"""The groups in which a run has one choice. Methods are one or several."""
