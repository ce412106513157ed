"""Retraining counterfactuals (Georgiev et al. 2023, Section 5): leave out the images that a method ranks first for a query at a
step, retrain from scratch, enter the query's journey at that step, and see what has changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from journey.artifacts.keep import All, Keep, Without, WithoutRandom
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Embedded, Evaluate, Sample, Score
from journey.artifacts.workspace import Workspace, get
from journey.attribution.methods.encoder import Encoder
from journey.config.checks import require, require_count
from journey.config.contracts import Evaluation, ImageSet, Model
from journey.config.groups import Sampler, Sampling, neutral
from journey.evaluation.candidates import chosen, settings
from journey.evaluation.counterfactual.removal import OPPONENTS, PROPONENTS, RANDOM, SEED, Change
from journey.evaluation.lds.lds import LDS
from journey.evaluation.rows import Row, select

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass
class Counterfactual(Evaluation):
    kind: ClassVar[str] = "counterfactual"
    steps: list[int] = field(default_factory=lambda: [400])  # t: where journeys are entered
    counts: list[int] = field(default_factory=lambda: [30, 100])  # k: how many proponents are left out
    opponents: list[int] = field(default_factory=list)  # how many opponents, by further retrainings
    windows: list[int] = field(default_factory=lambda: [100])  # Δ: beside the whole rest of the journey
    short_windows: list[int] = neutral([])  # further Δ, for the largest count of proponents alone
    num_queries: int = 12  # the first of them
    num_continuations: int = 32  # of each
    num_random: int = 6  # random removals of each count
    num_seeds: int = 4  # retrainings on everything
    dimensions: int = 16  # of the space of the Fréchet distance
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))
    beside_lds: bool = neutral(True)  # judge the same scores by LDS too, whose subset models large data cannot afford
    candidates: dict[str, float] = neutral({})  # the hyper-parameter of a method that has several

    def check(self, where: str) -> None:
        for name in ("steps", "counts", "opponents", "windows", "short_windows"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"{where}.{name}", values, "distinct")
        require(len(self.steps) > 0, f"{where}.steps", self.steps, "a non-empty list")
        require(len(self.counts) > 0, f"{where}.counts", self.counts, "a non-empty list")
        for name, least in {"num_queries": 2, "num_continuations": 2, "num_random": 2, "num_seeds": 1}.items():
            require_count(f"{where}.{name}", getattr(self, name), least=least, most=10_000)
        most = self.num_continuations - 1
        require_count(f"{where}.dimensions", self.dimensions, most=1000)
        fits = self.dimensions <= most
        require(fits, f"{where}.dimensions", self.dimensions, f"at most {most}: num_continuations={most + 1}")
        self.encoder.check(f"{where}.encoder")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        known = f"among sampling.steps={sampling.steps}"
        require(set(self.steps) <= set(sampling.steps), f"{where}.steps", self.steps, known)
        require_count(f"{where}.num_queries", self.num_queries, least=2, most=sampling.num_queries)
        needed = "ddpm: what follows x_t by ddim is one image, whatever the noise"
        require(sampling.sampler is Sampler.ddpm, "sampling.sampler", sampling.sampler.value, needed)
        self.encoder.weights(f"{where}.encoder")
        stride = model.num_timesteps // sampling.num_inference_steps
        for t in self.steps:
            shortest = min([*self.windows, t])
            for name, most in (("windows", t), ("short_windows", shortest - 1)):
                for window in getattr(self, name):
                    fine = 0 < window <= most and window % stride == 0
                    allowed = f"a multiple of {stride} in 1…{most}: journeys are entered at t={t}"
                    require(fine, f"{where}.{name}", window, allowed)

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        from journey.data.subsets import require_removable

        for name in ("counts", "opponents"):
            for count in getattr(self, name):
                require_removable(f"{where}.{name}", count, images.labels)

    # ------------------------------------------------------------------------------------------- what it needs

    def needs(self, recipes: Recipes, scores: dict[str, Score]) -> dict[str, object]:
        """changes: every retraining; before: [step], of the full model, twice as many continuations; lds: the same methods,
        judged by random subsets, or None.

        Raises: ConfigError naming a method of which one hyper-parameter must be named.
        """
        everyone, twice = tuple(range(self.num_queries)), 2 * self.num_continuations
        return {
            "changes": (*self._removals(recipes, scores), *self._floors(recipes, everyone)),
            "before": tuple(recipes.continued(recipes.trained(0), t, everyone, twice, self.encoder) for t in self.steps),
            "full": recipes.measured(recipes.trained(0)),
            "embedded": Embedded(recipes.images, self.encoder),
            "lds": recipes.judged(LDS(paired_steps=list(self.steps)), scores) if self.beside_lds else None,
        }

    def _removals(self, recipes: Recipes, scores: dict[str, Score]) -> Iterator[Change]:
        wanted = [(PROPONENTS, k) for k in self.counts] + [(OPPONENTS, k) for k in self.opponents]
        for t in self.steps:
            for name, score in scores.items():
                candidate = chosen(name, score.method, self.candidates)
                by_step = score.method.num_scores(len(recipes.steps)) > 1
                for side, count in wanted:
                    for query in range(self.num_queries):
                        step = t if by_step else recipes.steps[0]  # so that steps share what is one ranking
                        keep = Without(score, candidate, step, query, count, side == OPPONENTS)
                        yield self._change(recipes, name, side, count, t, keep, 0, (query,))

    def _floors(self, recipes: Recipes, queries: tuple[int, ...]) -> Iterator[Change]:
        for t in self.steps:
            for count in dict.fromkeys([*self.counts, *self.opponents]):
                for index in range(self.num_random):
                    keep = WithoutRandom(index, count, recipes.seed)
                    yield self._change(recipes, RANDOM, PROPONENTS, count, t, keep, 0, queries)
            for repeat in range(1, 1 + self.num_seeds):
                yield self._change(recipes, SEED, PROPONENTS, 0, t, All(), repeat, queries)

    def _change(
        self, recipes: Recipes, method: str, side: str, count: int, t: int, keep: Keep, repeat: int, queries: tuple[int, ...]
    ) -> Change:
        model = recipes.trained(repeat, keep)
        windows = [(*sorted(w for w in self.windows if w != t), t)]
        if self.short_windows and side == PROPONENTS and count in (max(self.counts), 0):
            windows.insert(0, tuple(sorted(self.short_windows)))
        of = (model, t, queries, self.num_continuations, self.encoder)
        continued = tuple(recipes.continued(*of, some) for some in windows)
        return Change(method, side, count, t, continued, recipes.measured(model))

    # ------------------------------------------------------------------------------------------------ its result

    def judge(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        import json

        from journey.evaluation.counterfactual import changes

        judged = changes.judged(spec, self.dimensions, workspace)
        lds, beside = spec.needs["lds"], {}
        found = judged.stated()
        if lds is not None:
            of_lds = json.loads((get(lds, workspace).path / "result.json").read_text())
            beside = {"lds": {key: of_lds[key] for key in ("num_subsets", "num_seeds", "num_queries")}}
            found += judged.against_lds(of_lds["rows"])
        return {
            "num_train": spec.journeys.checkpoint.images.num_train,
            "num_queries": self.num_queries,
            "num_continuations": self.num_continuations,
            "num_random": self.num_random,
            "num_seeds": self.num_seeds,
            "dimensions": self.dimensions,
            "steps": list(self.steps),
            "counts": list(self.counts),
            "opponents": list(self.opponents),
            "windows": {str(t): judged.windows_at(t) for t in self.steps},
            "accuracy": judged.accuracy,
            "candidates": settings(spec.scores, self.candidates),
            **beside,
            "rows": found,
            "pictures": judged.pictures(),
        }

    def headline(self, result: dict) -> list[Row]:
        return [row for row in select(result["rows"], quantity="rise", target="step") if "against" not in row]

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.counterfactual import tables

        return tables.tables(result)

    def texts(self, result: dict) -> dict[str, str]:
        from journey.evaluation.counterfactual import tables

        return {"counterfactual.md": tables.markdown(result)}

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.counterfactual import figures as drawn

        found = {f"effect_by_count_t{t}.png": drawn.by_count(result, t) for t in result["steps"]}
        for t in result["steps"]:
            if len(result["windows"][str(t)]) > 1:
                found[f"effect_by_window_t{t}.png"] = drawn.by_window(result, t)
            found[f"before_after_t{t}.png"] = drawn.before_after(result, t)
        if "lds" in result:
            found["lds_against_removal.png"] = drawn.lds_against_removal(result)
        return found
