"""A whole run: its groups, what varies in it, and the checks that need more than one group."""

from dataclasses import dataclass, field, fields, replace
from enum import Enum

from omegaconf import MISSING

from journey.engine.checks import (
    MOST_METHODS,
    require,
    require_count,
    require_name,
    require_seed,
    require_types,
)
from journey.engine.spec import Component
from journey.engine.workspace import Compute, Precision, Tracking
from journey.pipeline.interfaces import Dataset, Evaluation, Method, Model
from journey.pipeline.settings import (
    Augmentation,
    GradientSettings,
    Projection,
    QueryExample,
    Retraining,
    Sampling,
    Start,
    Storage,
    Target,
    Training,
)


class Task(Enum):
    train = "train"
    sample = "sample"
    attribute = "attribute"
    evaluate = "evaluate"
    report = "report"
    plan = "plan"
    status = "status"
    verify = "verify"
    export = "export"


@dataclass
class Vary:
    """Axes: every method of the run that has such a field is also judged with each of these values of it, one at a time."""

    target: list[Target] = field(default_factory=list)
    num_checkpoints: list[int] = field(default_factory=list)
    first_checkpoint: list[int] = field(default_factory=list)
    num_samples: list[int] = field(default_factory=list)
    noise_set: list[int] = field(default_factory=list)
    share_noise: list[bool] = field(default_factory=list)
    stratified: list[bool] = field(default_factory=list)
    antithetic: list[bool] = field(default_factory=list)
    train_timesteps: list[int] = field(default_factory=list)
    precision: list[Precision] = field(default_factory=list)
    projection: list[Projection] = field(default_factory=list)
    projection_dim: list[int] = field(default_factory=list)
    projection_rank: list[int] = field(default_factory=list)
    storage: list[Storage] = field(default_factory=list)
    damping: list[float] = field(default_factory=list)
    query_example: list[QueryExample] = field(default_factory=list)

    def variants(self, name: str, method: Method) -> dict[str, tuple[str, Method]]:
        """Axis, and the method with that field changed, by name: `<name>-<field>-<value>`, or `<name>-<value>` where it is `at`.

        A field without effect on the method's scores is no axis of it.
        """
        found = {}
        own = {f.name for f in fields(method)}
        for axis, values in vars(self).items():
            if axis not in own or not method.depends_on(axis):
                continue
            for value in values:
                shown = value.value if isinstance(value, Enum) else value
                changed = replace(method, **{axis: [value] if axis == "damping" else value})
                found[f"{name}-{shown}" if axis == "at" else f"{name}-{axis}-{shown}"] = (
                    axis,
                    changed,
                )
        return found


@dataclass
class RunConfig:
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
    task: Task = Task.report
    name: str = "adhoc"  # of the experiment: where its report goes, and its group in W&B
    seed: int = 0
    artifacts: str = "artifacts"
    reports: str = "reports"

    def __post_init__(self) -> None:
        for group, contract in GROUPS.items():
            value = getattr(self, group)
            require(
                isinstance(value, contract), group, value, f"one of its choices, such as {group}=…"
            )
        require_types(self)
        require_name("name", self.name)
        require_seed("seed", self.seed)
        for name in ("artifacts", "reports"):
            path = getattr(self, name)
            local = (
                path != "" and "://" not in path and not path.startswith("~") and path.isprintable()
            )
            require(local, name, path, "a directory of this machine (~ is not expanded)")
        for group in (*GROUPS, "training", "sampling", "attribution", "retraining"):
            getattr(self, group).check(group)
        self.dataset.check_duplicates("dataset")
        self._check_start()
        self.sampling.check_schedule("sampling", self.model.num_timesteps)
        self._check_space()
        self.evaluation.check_run("evaluation", self.sampling, self.model)
        require_count(
            "retraining.num_samples", self.retraining.num_samples, most=self.model.num_timesteps
        )
        self._check_methods()

    def _check_start(self) -> None:
        """Where journeys begin."""
        if self.sampling.start is Start.generated:
            return
        planted, queries = self.dataset.num_injected, self.sampling.num_queries
        require(
            planted > 0,
            "sampling.start",
            "injected",
            "generated unless dataset.num_injected is positive",
        )
        require(
            queries == planted,
            "sampling.num_queries",
            queries,
            f"dataset.num_injected={planted} with sampling.start=injected",
        )
        model = self.model
        of_pixels = model.pixels and not model.reads_text
        require(
            of_pixels,
            "sampling.start",
            "injected",
            f"generated with model={model.name}: planted images are pixels alone",
        )

    def _check_space(self) -> None:
        """Pixels or latents, text or none."""
        model, sampling, training = self.model, self.sampling, self.training
        for name, used in {
            "training.flip": training.flip,
            "attribution.flips": self.attribution.flips is not Augmentation.none,
        }.items():
            allowed = f"left out with model={model.name}: latents have no mirror image"
            require(model.pixels or not used, name, _value(self, name), allowed)
        if not model.reads_text:
            read = {
                "sampling.prompts": len(sampling.prompts),
                "sampling.guidance": sampling.guidance != 1,
                "training.caption_dropout": training.caption_dropout,
                "attribution.captions": self.attribution.captions is not Augmentation.none,
            }
            for name, used in read.items():
                require(
                    not used,
                    name,
                    _value(self, name),
                    f"left as it is with model={model.name}, which reads no text",
                )
            return
        guided = sampling.guidance == 1 or training.caption_dropout > 0
        allowed = "1 unless training.caption_dropout is positive: guidance needs a model that has seen images without captions"
        require(guided, "sampling.guidance", sampling.guidance, allowed)

    def _check_methods(self) -> None:
        require(len(self.method) > 0, "method", self.method, "a non-empty list of methods")
        for name in self.method:
            require_name("method", str(name))
        for axis, values in vars(self.vary).items():
            require(
                len(values) < MOST_METHODS,
                f"vary.{axis}",
                f"{len(values)} values",
                f"fewer than {MOST_METHODS}",
            )
        total = sum(
            1 + len(self.vary.variants(name, method)) for name, method in self.method.items()
        )
        require(
            total <= MOST_METHODS,
            "vary",
            f"{total} methods",
            f"such that there are at most {MOST_METHODS}",
        )
        for name, method in self.all_methods.items():
            method.check(f"method.{name}")
            method.check_run(f"method.{name}", self.model, self.training.num_steps)
            of = f"{name} on {self.model.label}"
            fits = self.model.pixels or not method.needs_pixels
            require(fits, f"method.{name}", of, "used with a model of pixels, such as ddpm_tiny")
            fits = not (self.model.pixels and method.needs_latents)
            require(fits, f"method.{name}", of, "used with a model of latents, such as ldm_tiny")
            fits = self.model.reads_text or not method.needs_text
            require(
                fits, f"method.{name}", of, "used with a model that reads text, such as ldm_tiny"
            )
        for axis, values in vars(self.vary).items():
            require(len(set(values)) == len(values), f"vary.{axis}", values, "distinct")
            varied = any(
                axis in {a for a, _ in self.vary.variants(n, m).values()}
                for n, m in self.method.items()
            )
            require(
                varied or not values,
                f"vary.{axis}",
                values,
                f"empty: it has no effect on {', '.join(self.method)}",
            )

    @property
    def all_methods(self) -> dict[str, Method]:
        """All methods: the chosen ones, then their variants, each once.

        Raises: ConfigError if a variant is called as a method is.
        """
        judged = dict(self.method)
        for name, method in self.method.items():
            for variant, (_, changed) in self.vary.variants(name, method).items():
                require(
                    variant not in self.method,
                    "vary",
                    variant,
                    "without a method that is called like a variant",
                )
                if changed not in judged.values():
                    judged[variant] = changed
        return judged


def _value(run: RunConfig, name: str) -> object:
    """A setting by its name, as one writes it."""
    group, setting = name.split(".")
    value = getattr(getattr(run, group), setting)
    return value.value if isinstance(value, Enum) else value


GROUPS: dict[str, type[Component]] = {
    "dataset": Dataset,
    "model": Model,
    "evaluation": Evaluation,
    "compute": Compute,
    "tracking": Tracking,
}
"""The groups a choice of kind is made in; methods are one or several."""
