"""A whole run: its groups, what varies in it, and the checks that need more than one group."""

from dataclasses import dataclass, field, replace
from enum import Enum

from journey.config.checks import ConfigError, require, require_name
from journey.config.groups import (
    DDPM,
    Compute,
    Dataset,
    Evaluation,
    Model,
    Sampling,
    Tracking,
    Training,
    visited_timesteps,
)
from journey.config.methods import (
    At,
    Attribution,
    Encoder,
    GradientMethod,
    Method,
    NonparametricScore,
    Precision,
    Projection,
)


class Task(Enum):
    train = "train"
    sample = "sample"
    attribute = "attribute"
    evaluate = "evaluate"
    report = "report"
    plan = "plan"


@dataclass
class Vary:
    """Axes: every method of the run that has such a field is also judged with each of these values of it, one at a time."""

    at: list[At] = field(default_factory=list)
    num_checkpoints: list[int] = field(default_factory=list)
    num_draws: list[int] = field(default_factory=list)
    stratified: list[bool] = field(default_factory=list)
    antithetic: list[bool] = field(default_factory=list)
    train_window: list[int] = field(default_factory=list)
    precision: list[Precision] = field(default_factory=list)
    projection: list[Projection] = field(default_factory=list)
    projection_dim: list[int] = field(default_factory=list)
    damping: list[float] = field(default_factory=list)

    def variants(self, method: Method) -> list[tuple[str, Method]]:
        """Axis, and the method with that field changed: `<method>-<field>-<value>`, or `<method>-<value>` where it is `at`."""
        found = []
        for axis, values in vars(self).items():
            if not hasattr(method, axis) or (axis == "train_window" and method.at is not At.step):
                continue  # there is nothing to vary
            for value in values:
                shown = value.value if isinstance(value, Enum) else value
                name = f"{method.name}-{shown}" if axis == "at" else f"{method.name}-{axis}-{shown}"
                changed = replace(method, **{axis: [value] if axis == "damping" else value, "name": name})
                found.append((axis, changed))
        return found


def same_but_for_its_name(one: Method, other: Method) -> bool:
    """Whether two methods have the same scores."""
    return replace(one, name=other.name) == other


@dataclass
class Config:
    dataset: Dataset = field(default_factory=Dataset)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)
    attribution: Attribution = field(default_factory=Attribution)
    method: dict[str, Method] = field(default_factory=dict)
    vary: Vary = field(default_factory=Vary)
    evaluation: Evaluation = field(default_factory=Evaluation)
    compute: Compute = field(default_factory=Compute)
    tracking: Tracking = field(default_factory=Tracking)
    task: Task = Task.report
    name: str = "adhoc"  # of the experiment: where its report goes, and its group in W&B
    seed: int = 0
    artifacts: str = "artifacts"
    reports: str = "reports"

    def __post_init__(self) -> None:
        require(len(self.method) > 0, "method", list(self.method), "a non-empty list of methods")
        require_name("name", self.name)
        require_name("evaluation.name", self.evaluation.name)
        for key, method in self.method.items():
            require_name("method", key)
            require(isinstance(method, Method), f"method.{key}", method, "a method's settings")
            require(method.name == key, f"method.{key}.name", method.name, f"{key}, what it is called by")
            pixels = isinstance(self.model, DDPM) or not isinstance(method, NonparametricScore | Encoder)
            require(
                pixels, f"method.{key}", f"{key} on model={self.model.name}", "used with a model of pixels, such as ddpm_tiny"
            )
        match self.model:
            case DDPM():
                num_timesteps = self.model.num_timesteps
            case _:
                raise ConfigError(f"model.name={self.model.name}: unknown kind of model")
        self._check_steps(num_timesteps)
        self._check_draws(num_timesteps)

    @property
    def judged(self) -> dict[str, Method]:
        """All methods: the chosen ones, then their variants, each once."""
        judged = dict(self.method)
        for method in self.method.values():
            for _, variant in self.vary.variants(method):
                if not any(same_but_for_its_name(variant, other) for other in judged.values()):
                    judged[variant.name] = variant
        return judged

    def _check_steps(self, num_timesteps: int) -> None:
        steps, inference_steps = self.sampling.steps, self.sampling.num_inference_steps
        require(all(0 <= t < num_timesteps for t in steps), "sampling.steps", steps, f"in [0, {num_timesteps})")
        in_range = inference_steps <= num_timesteps
        require(in_range, "sampling.num_inference_steps", inference_steps, f"in 1…{num_timesteps}")
        visited = visited_timesteps(num_timesteps, inference_steps)
        stride = num_timesteps // inference_steps
        allowed = f"timesteps the sampler visits: multiples of {stride} up to {visited[0]}"
        require(set(steps) <= set(visited), "sampling.steps", steps, allowed)
        paired = self.evaluation.paired_steps
        require(len(set(paired)) == len(paired), "evaluation.paired_steps", paired, "distinct")
        require(set(paired) <= set(steps), "evaluation.paired_steps", paired, f"among sampling.steps={steps}")

    def _check_draws(self, num_timesteps: int) -> None:
        draws = {"attribution.num_draws": self.attribution.num_draws}
        draws |= {f"method.{k}.num_draws": m.num_draws for k, m in self.judged.items() if hasattr(m, "num_draws")}
        for name, count in {**draws, "evaluation.num_draws": self.evaluation.num_draws}.items():
            require(count <= num_timesteps, name, count, f"at most the {num_timesteps} timesteps there are")
        for name, method in self.judged.items():
            if isinstance(method, GradientMethod):
                window = method.train_window
                require(window <= num_timesteps, f"method.{name}.train_window", window, f"at most {num_timesteps}")
