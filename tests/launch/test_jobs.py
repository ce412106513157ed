import pytest
from toy_stages import Toy

from journey.engine.graph import ancestors, missing
from journey.engine.spec import cache_key
from journey.launch.jobs import JobQueue, JobsFailedError


def family() -> tuple[Toy, ...]:
    a, b = Toy("a"), Toy("b")
    c = Toy("c", (a,))
    d = Toy("d", (c, b))
    return a, b, c, d


def agenda_of(*targets: Toy) -> JobQueue:
    return JobQueue(missing(list(targets), lambda spec: False))


def test_everything_is_taken_once_parents_first():
    d = family()[-1]
    agenda = agenda_of(d)
    taken = []
    while not agenda.finished:
        taken.append(agenda.take())
        agenda.finish(taken[-1])
    assert sorted(taken) == sorted(cache_key(spec) for spec in [d, *ancestors(d)])
    for spec in [d, *ancestors(d)]:
        assert all(
            taken.index(cache_key(need)) < taken.index(cache_key(spec)) for need in spec.needs
        )


def test_among_ready_jobs_those_of_the_first_target_come_first():
    """b and e are ready from the start, c only later; yet c goes before e."""
    a, b, c, d = family()
    e = Toy("e")
    agenda = agenda_of(d, e)
    assert agenda.take() == cache_key(a)
    assert agenda.take() == cache_key(b)
    agenda.finish(cache_key(a))
    assert [agenda.take(), agenda.take()] == [cache_key(c), cache_key(e)]
    assert agenda.ready == [], "d waits for b and c"


def test_what_needs_a_failed_job_is_blocked_and_nothing_else():
    a, b, c, d = family()
    agenda = agenda_of(d)
    agenda.take()
    agenda.fail(cache_key(a), "broken")
    assert agenda.blocked == {cache_key(c), cache_key(d)}
    assert agenda.left == [cache_key(b)]
    assert agenda.take() == cache_key(b)
    agenda.finish(cache_key(b))
    assert agenda.finished
    with pytest.raises(JobsFailedError, match=f"^{cache_key(a)}: broken$"):
        agenda.raise_failures()


def test_a_job_given_back_keeps_its_place():
    agenda = agenda_of(*(Toy(label) for label in "xyz"))
    first = agenda.take()
    agenda.take()
    agenda.give_back(first)
    assert agenda.take() == first
    assert agenda.attempts[first] == 2


def test_a_parent_named_twice_is_awaited_once():
    a = Toy("a")
    agenda = agenda_of(Toy("pair", (a, a)))
    agenda.finish(agenda.take())
    assert len(agenda.ready) == 1
