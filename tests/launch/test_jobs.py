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


def queue_of(*targets: Toy) -> JobQueue:
    return JobQueue(missing(list(targets), lambda spec: False))


def test_every_job_is_started_once_parents_first():
    d = family()[-1]
    queue = queue_of(d)
    started = []
    while not queue.done:
        started.append(queue.start())
        queue.finish(started[-1])
    assert sorted(started) == sorted(cache_key(spec) for spec in [d, *ancestors(d)])
    for spec in [d, *ancestors(d)]:
        assert all(
            started.index(cache_key(need)) < started.index(cache_key(spec)) for need in spec.needs
        )


def test_among_ready_jobs_those_of_the_first_target_come_first():
    """b and e are ready from the start, c only later; yet c runs before e."""
    a, b, c, d = family()
    e = Toy("e")
    queue = queue_of(d, e)
    assert queue.start() == cache_key(a)
    assert queue.start() == cache_key(b)
    queue.finish(cache_key(a))
    assert [queue.start(), queue.start()] == [cache_key(c), cache_key(e)]
    assert queue.ready == [], "d waits for b and c"


def test_only_jobs_that_need_a_failed_one_are_blocked():
    a, b, c, d = family()
    queue = queue_of(d)
    queue.start()
    queue.fail(cache_key(a), "broken")
    assert queue.blocked == {cache_key(c), cache_key(d)}
    assert queue.remaining == [cache_key(b)]
    assert queue.start() == cache_key(b)
    queue.finish(cache_key(b))
    assert queue.done
    with pytest.raises(JobsFailedError, match=f"^{cache_key(a)}: broken$"):
        queue.raise_failures()


def test_a_retried_job_keeps_its_place():
    queue = queue_of(*(Toy(label) for label in "xyz"))
    first = queue.start()
    queue.start()
    queue.retry(first)
    assert queue.start() == first
    assert queue.attempts[first] == 2


def test_a_job_can_be_retried_after_the_others():
    queue = queue_of(*(Toy(label) for label in "xyz"))
    first = queue.start()
    queue.retry(first, last=True)
    started = [queue.start() for _ in range(3)]
    assert started[-1] == first
    assert queue.attempts[first] == 2


def test_a_parent_needed_twice_is_waited_for_once():
    a = Toy("a")
    queue = queue_of(Toy("pair", (a, a)))
    queue.finish(queue.start())
    assert len(queue.ready) == 1
