"""Who is named when a run does not go on."""

import queue
import time

import pytest
import torch.distributed as dist

from fastkd.train.roll_call import RollCall

PATIENCE = 0.6


@pytest.fixture
def calls():
    """Two processes' roll calls over one store, and what they gave up with."""
    told = queue.Queue()
    store = dist.HashStore()
    made = [RollCall(store, rank, 2, PATIENCE, told.put) for rank in range(2)]
    yield *made, told
    for call in made:
        call.end()


def test_a_process_that_stops_is_named(calls):
    _, second, told = calls
    time.sleep(PATIENCE / 4)
    second.end()  # its thread is heard no more, as after SIGSTOP
    line = told.get(timeout=10 * PATIENCE)
    assert line.startswith("process 0: process 1 (")
    assert f"has not answered for {PATIENCE:g} s" in line and "goes on from" in line


def test_a_process_that_does_not_come_is_named_by_all(calls):
    first, _, told = calls
    first.met()  # waits for the second
    lines = {told.get(timeout=10 * PATIENCE) for _ in calls[:2]}
    assert all("process 1 (" in line and "the others wait for it" in line for line in lines)
    assert {line[:10] for line in lines} == {"process 0:", "process 1:"}


def test_all_in_one_place_name_nobody(calls):
    *_, told = calls
    assert "no process has gone on" in told.get(timeout=10 * PATIENCE)


def test_nobody_is_named_while_one_goes_on(calls):
    first, second, told = calls
    first.met()  # waits for the second, which decodes
    for _ in range(15):
        time.sleep(PATIENCE / 5)
        second.went_on()
    assert told.empty()


def test_a_store_that_is_gone_is_told():
    class Gone(dist.HashStore):
        def set(self, key, value):
            raise dist.DistStoreError("gone")

    told = queue.Queue()
    call = RollCall(Gone(), 0, 2, PATIENCE, told.put)
    assert "of the launcher, or process 0" in told.get(timeout=10 * PATIENCE)
    call.end()
