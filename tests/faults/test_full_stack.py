"""Every fault once on the real product, under load, and after each of them it draws again."""

from pathlib import Path

import pytest

from tests.faults.checker import check
from tests.faults.full_stack import APPS, FullStack
from tests.faults.strikes import STRIKES

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

SEED = 1


def test_every_fault_of_the_real_stack_loses_and_changes_nothing(tmp_path: Path) -> None:
    with FullStack(tmp_path, seed=SEED) as stack:
        kinds = list(STRIKES)
        stack.random.shuffle(kinds)
        for kind in kinds:
            STRIKES[kind](stack)
            stack.prove_alive(stack.random.choice(APPS))
        for app in APPS:
            stack.prove_alive(app)
        facts = stack.settle()
    assert check(facts) == []
    # The run was one: faults hit jobs, clients met on keys, and most jobs were drawn all the same.
    assert {fault.kind for fault in facts.faults} == set(STRIKES)
    jobs = facts.snapshot.jobs.values()
    assert any(job.attempt > 1 and job.status == "succeeded" for job in jobs)
    assert sum(job.status == "succeeded" for job in jobs) > len(jobs) / 2
    assert len(facts.accepted) < sum(asked.job_id is not None for asked in facts.asked)
