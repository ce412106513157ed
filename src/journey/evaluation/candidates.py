"""Which hyper-parameter an evaluation asks a method with that does not choose among them."""

from journey.artifacts.specs import Score
from journey.config.checks import require
from journey.config.contracts import Method


def chosen(name: str, method: Method, candidates: dict[str, float]) -> int:
    """Along the first axis of a method's scores. candidates: a hyper-parameter by method; of one that has several.

    Raises: ConfigError if it has several and none of them is named.
    """
    known = method.candidates()
    if len(known) == 1 and name not in candidates:
        return 0
    values = [value for settings in known for value in settings.values()]
    allowed = f"one of {', '.join(f'{value:g}' for value in values)}: {'/'.join(known[0])} of {name}"
    require(candidates.get(name) in values, f"evaluation.candidates.{name}", candidates.get(name), allowed)
    return values.index(candidates[name])


def settings(scores: dict[str, Score], candidates: dict[str, float]) -> dict[str, dict[str, float]]:
    """What every method is asked with."""
    return {name: score.method.candidates()[chosen(name, score.method, candidates)] for name, score in scores.items()}
