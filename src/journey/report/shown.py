"""What pictures, the page and Python show of a run beside what its evaluation found."""

from enum import Enum

from journey.config.contracts import Evaluation, Method
from journey.config.settings import Config


def told(run: Config, found: dict) -> dict:
    """What was found, with what tables and figures need to know of the run."""
    variants = [name for name in run.judged if name not in run.method]
    about = {"experiment": run.name, "dataset": run.dataset.label, "model": run.model.label}
    return {**about, "variants": variants, "axes": axes(run), **found}


def candidate(method: Method, name: str, evaluation: Evaluation, result: dict | None) -> int:
    """Which hyper-parameter a method is shown with, along the first axis of its scores: what the evaluation chose or was told,
    or else the middle one.

    result: None while there is none.
    """
    known = method.candidates()
    chosen = evaluation.chosen(result, name) if result is not None else None
    return known.index(chosen) if chosen else len(known) // 2


def setting(method: Method, index: int) -> str:
    """In words; "" where there is nothing to choose.

    >>> from journey.attribution.methods.gradient import GradientMethod
    >>> setting(GradientMethod(damping=[0.1, 1.0]), 1)
    'damping 1'
    """
    return ", ".join(f"{key} {value:g}" for key, value in method.candidates()[index].items())


def axes(run: Config) -> dict[str, list[tuple[str, str]]]:
    """Every axis that the first method was varied along: (value, name), in rising order where the values are numbers."""
    base, method = next(iter(run.method.items()))
    points: dict[str, dict] = {}
    for axis, variant in run.vary.variants(base, method).values():
        if axis == "at":
            continue
        if axis != "damping":  # of which the base chooses among several
            points.setdefault(axis, {_value(method, axis): base})
        same = next(name for name, other in run.judged.items() if other == variant)
        points.setdefault(axis, {})[_value(variant, axis)] = same
    return {axis: [(str(value), name) for value, name in sorted(of.items())] for axis, of in points.items()}


def _value(method: Method, axis: str) -> float | str:
    value = vars(method)[axis]
    return value.value if isinstance(value, Enum) else value[0] if isinstance(value, list) else value
