"""The priority of training, of threads that end again."""

import os
import threading

import pytest

from edge_client.daemon.priority import LOWEST, lower_priority


def priority_of_thread(nice):
    """Return how nice a thread has become, and its policy."""
    got = []

    def run():
        before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        lower_priority(nice)
        after = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        inner = []
        thread = threading.Thread(target=lambda: inner.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()
        got.append((before, after, os.sched_getscheduler(0), inner[0]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return got[0]


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the system has no such policy")
def test_training_with_the_lowest_priority_computes_only_while_nobody_else_does():
    _, after, policy, inner = priority_of_thread(LOWEST)
    assert (after, policy, inner) == (LOWEST, os.SCHED_IDLE, os.SCHED_IDLE)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="the system has no policies")
def test_a_share_of_the_processor_is_kept_otherwise():
    before, after, policy, inner = priority_of_thread(3)
    assert after == min(before + 3, LOWEST)
    assert (policy, inner) == (os.sched_getscheduler(0),) * 2
