"""How members of a gang on several machines find member 0, even if some of them restart."""

from __future__ import annotations

import asyncio

from aflow.executors.mailbox import Rendezvous
from aflow.executors.remote.attempt import gang_address, own_address
from aflow.scheduler.messages import FromTask, encode_inputs
from aflow.storage.memory import MemoryStore
from aflow.task.spec import AttemptSpec


def member(index: int, attempt: int) -> AttemptSpec:
    """Return a member of a gang of three, whose member 0 is task 7."""
    inputs = encode_inputs(FromTask(1))
    return AttemptSpec("meet", 7 + index, attempt, inputs, 1, index, 3, True, False, False, {})


async def found(gang: Rendezvous, index: int, attempt: int) -> str | None:
    """Return where a starting member finds member 0 at its first attempt; None if it has to
    wait."""
    looking = asyncio.create_task(gang_address(gang, member(index, attempt)))
    done, _ = await asyncio.wait([looking], timeout=0.3)
    looking.cancel()
    return looking.result() if done else None


async def test_each_member_finds_the_attempt_of_member_0_that_goes_on() -> None:
    gang = Rendezvous(MemoryStore(), "Flow", "1")
    gang.expect([member(index, 0) for index in range(3)])
    assert await found(gang, 1, 0) is None
    gang.announce(7, 0, "10.0.0.1")
    assert "10.0.0.1" == await found(gang, 1, 0)

    gang.expect([member(2, 1)])
    assert "10.0.0.1" == await found(gang, 2, 1), "that one begins again alone"

    gang.expect([member(index, 1) for index in range(3)])
    assert await found(gang, 1, 1) is None, "all begin again: the old address is not theirs"
    gang.announce(7, 0, "10.0.0.1")
    assert await found(gang, 1, 1) is None, "the member 0 of before is no longer needed"
    gang.announce(7, 1, "10.0.0.2")
    gang.expect([member(0, 1)])
    assert "10.0.0.2" == await found(gang, 1, 1), (
        "what was said stays, also when it is launched again"
    )

    gang.expect([member(0, 2)])
    assert await found(gang, 1, 2) is None, "member 0 begins again alone"
    assert own_address() == await found(gang, 0, 2)
    assert own_address() == await found(gang, 1, 2)
