"""When an app goes up, stays and goes down."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from sdserve.apps import AppState, AppStatus, ReplicaPresence
from sdserve.scaling import Demand, evict


def status(
    queued: int = 0,
    running: int = 0,
    *,
    wished: bool = False,
    broken: bool = False,
    slots: tuple[int, ...] = (),
) -> AppStatus:
    return AppStatus(
        state=AppState.COLD,
        phase=None,
        queued=queued,
        running=running,
        replicas=tuple(
            ReplicaPresence(
                id=str(number), state=AppState.READY, phase="ready", pid=1, node="n", slots=count
            )
            for number, count in enumerate(slots)
        ),
        broken_reason="no" if broken else None,
        wished=wished,
    )


def demand(**changes: int) -> Demand:
    fields = {"min_replicas": 0, "max_replicas": 3, **changes}
    return Demand(idle_timeout=timedelta(seconds=10), **fields)


def test_the_first_job_wakes_an_app_at_once() -> None:
    app = demand()
    assert app.wanted(status(), 0, now=0) == 0
    assert app.wanted(status(queued=1), 0, now=0.2) == 1


def test_an_idle_app_sleeps_after_the_time_out_and_not_before() -> None:
    app = demand()
    app.wanted(status(running=1), 1, now=0)
    assert app.wanted(status(), 1, now=9.9) == 1
    assert app.wanted(status(), 1, now=10.1) == 0


def test_leases_count_as_work() -> None:
    app = demand()
    for second in range(100):
        assert app.wanted(status(running=1), 1, now=second) == 1


def test_more_jobs_than_slots_want_more_replicas_up_to_the_limit() -> None:
    assert demand().wanted(status(queued=3, slots=(2,)), 1, now=0) == 2
    assert demand().wanted(status(queued=50), 0, now=0) == 3


def test_replicas_go_only_when_the_larger_need_is_long_past() -> None:
    app = demand()
    assert app.wanted(status(queued=3), 0, now=0) == 3
    assert app.wanted(status(running=1), 3, now=5) == 3
    assert app.wanted(status(running=1), 3, now=10.5) == 1


def test_a_restarted_controller_does_not_stop_what_runs() -> None:
    assert demand().wanted(status(), 2, now=0) == 2


def test_a_broken_app_wants_nothing() -> None:
    app = demand(min_replicas=1)
    app.wanted(status(queued=2), 1, now=0)
    assert app.wanted(status(queued=2, broken=True), 1, now=1) == 0


def test_a_wish_keeps_one_warm() -> None:
    app = demand()
    assert app.wanted(status(wished=True), 0, now=0) == 1


def test_an_evicted_app_goes_at_once() -> None:
    app = demand()
    app.wanted(status(running=1), 1, now=0)
    app.forget()
    assert app.wanted(status(), 1, now=0.1) == 0


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), min_size=1, max_size=40))
def test_wanted_is_the_largest_need_of_the_window(looks: list[tuple[float, int]]) -> None:
    app, now, history = demand(max_replicas=99), 0.0, [(0.0, 0)]
    for pause, jobs in looks:
        now += pause
        history.append((now, jobs))
        expected = max(need for when, need in history if when >= now - 10)
        assert app.wanted(status(queued=jobs), 0, now) == expected


def test_the_least_recently_used_idle_app_gives_way() -> None:
    idle = {"a": 5.0, "b": 3.0}
    assert evict({"c": 9.0}, idle) == "b"
    assert evict({}, idle) is None
    assert evict({"c": 9.0}, {}) is None
