"""Lanes: order, waiting, failure, statistics; promises."""

from __future__ import annotations

import threading

import pytest

from pycauset.devices.lanes import Failure, HostCompletion, InlineLane, Span, ThreadLane


def lane_of(kind, failure, timeline=None, threads=1):
    return InlineLane(kind, failure, timeline) if kind == "inline" else ThreadLane(kind, threads, failure, timeline)


@pytest.fixture(params=["inline", "thread"])
def kind(request):
    return request.param


def test_jobs_run_in_order_and_are_counted(kind):
    timeline: list[Span] = []
    lane, ran = lane_of(kind, Failure(), timeline), []
    jobs = [lane.submit(lambda i=i: ran.append(i), (), name=f"job {i}", nbytes=i) for i in range(50)]
    lane.close()
    assert ran == list(range(50))
    assert all(job.done() and job.lane is lane for job in jobs)
    assert lane.statistics()[:2] == (50, sum(range(50)))
    assert [s.name for s in timeline] == [f"job {i}" for i in range(50)]
    assert all(s.lane == kind and s.start <= s.end for s in timeline)
    assert lane.statistics().busy == pytest.approx(sum(s.end - s.start for s in timeline))


def test_a_job_waits_for_jobs_of_other_lanes():
    failure, gate, ran = Failure(), threading.Event(), []
    first, second = ThreadLane("first", 1, failure), ThreadLane("second", 1, failure)
    one = first.submit(lambda: (gate.wait(30), ran.append(1)), (), name="one")
    two = second.submit(lambda: ran.append(2), (one,), name="two")
    assert not one.done()
    assert not two.done()
    gate.set()
    two.wait()
    first.close()
    second.close()
    assert ran == [1, 2]


def test_a_lane_of_several_threads_waits_for_its_own_jobs():
    failure, gate, ran = Failure(), threading.Event(), []
    lane = ThreadLane("read", 3, failure)
    one = lane.submit(lambda: (gate.wait(30), ran.append(1)), (), name="one")
    lane.submit(lambda: ran.append(2), (one,), name="two")
    free = lane.submit(lambda: ran.append(3), (), name="three")
    free.wait()
    assert ran == [3]
    gate.set()
    lane.close()
    assert ran == [3, 1, 2]


def test_jobs_after_a_failure_complete_without_running(kind):
    failure, ran = Failure(), []
    lane, other = lane_of(kind, failure), lane_of(kind, failure)

    def fail():
        raise OSError("the first")

    bad = lane.submit(fail, (), name="bad")
    later = [lane.submit(lambda: ran.append(1), (bad,), name="later"), other.submit(lambda: ran.append(2), (bad,), name="other")]
    for job in later:
        job.wait()
    failure.record(ValueError("the second"))
    lane.close()
    other.close()
    assert ran == []
    assert failure
    assert isinstance(failure.error, OSError)
    assert all(job.done() for job in later)


def test_closing_ends_the_threads_and_runs_what_is_queued():
    ran = []
    lane = ThreadLane("write", 4, Failure())
    for i in range(100):
        lane.submit(lambda i=i: ran.append(i), (), name="job")
    lane.close()
    assert sorted(ran) == list(range(100))
    assert not [t for t in threading.enumerate() if t.name.startswith("pycauset-write")]


def test_a_promise_is_done_when_what_it_stands_for_is():
    promise, inner = HostCompletion(), HostCompletion(lane="a lane")
    woken = threading.Event()
    waiter = threading.Thread(target=lambda: (promise.wait(), woken.set()))
    waiter.start()
    promise.resolve(inner)
    assert promise.lane == "a lane"
    assert promise.inner is inner
    assert not promise.done()
    assert not woken.is_set()
    inner.set()
    waiter.join(30)
    assert woken.is_set()
    assert promise.done()
    inner.set()  # a second time does nothing
    promise.wait()


def test_a_promise_that_is_only_set_wakes_every_waiter():
    promise, woken = HostCompletion(), []
    threads = [threading.Thread(target=lambda: (promise.wait(), woken.append(1))) for _ in range(5)]
    for thread in threads:
        thread.start()
    promise.set()
    for thread in threads:
        thread.join(30)
    assert len(woken) == 5
    assert promise.inner is promise
