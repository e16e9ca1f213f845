"""The bell: a ring is never missed by whoever listens, and wakes nobody else."""

import asyncio
import threading

import pytest

from orchestrator.controller.bell import Bell

LONG_S = 30.0


def test_a_ring_before_the_wait_counts():
    bell = Bell()
    with bell.listen("host:1") as ear:
        bell(frozenset({"host:1"}))
        assert ear.wait(0)
        assert not ear.wait(0)


def test_only_the_topic_that_rang_wakes():
    bell = Bell()
    with bell.listen("host:1", "scheduler") as one, bell.listen("host:2") as two:
        bell(frozenset({"scheduler"}))
        assert one.wait(0)
        assert not two.wait(0)


def test_a_thread_that_waits_is_woken():
    bell, woken = Bell(), []
    with bell.listen("host:1") as ear:
        waiting = threading.Thread(target=lambda: woken.append(ear.wait(LONG_S)))
        waiting.start()
        bell(frozenset({"host:1"}))
        waiting.join(LONG_S)
    assert woken == [True]


def test_a_task_is_woken_from_another_thread():
    bell = Bell()

    async def listen() -> list[bool]:
        with bell.listen_async("operation:1") as ear:
            ringing = threading.Thread(target=bell, args=(frozenset({"operation:1"}),))
            ringing.start()
            first = await ear.wait(LONG_S)
            ringing.join()
            return [first, await ear.wait(0.01)]

    assert asyncio.run(listen()) == [True, False]


def test_whoever_stops_listening_is_forgotten():
    bell = Bell()

    async def listen() -> None:
        with bell.listen_async("a", "b"):
            assert bell.listeners == 2
            raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        asyncio.run(listen())
    assert bell.listeners == 0
    with bell.listen("a"):
        assert bell.listeners == 1


def test_a_loop_that_ended_while_it_listened_breaks_no_ring():
    bell = Bell()
    loop = asyncio.new_event_loop()

    async def join() -> object:
        listening = bell.listen_async("a")
        listening.__enter__()
        return listening

    kept = loop.run_until_complete(join())
    loop.close()
    bell(frozenset({"a"}))
    assert kept is not None
