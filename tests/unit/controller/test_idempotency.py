"""The same key and body makes one thing, however often and however parallel. On both databases."""

from __future__ import annotations

import threading

import pytest

from orchestrator.controller import idempotency
from orchestrator.controller.idempotency import Made, Sent
from orchestrator.model.errors import InvalidInputError

SENT = Sent("create_instance", "key-1", "a" * 64)


def claim(platform, sent: Sent, made: Made, caller=None):
    caller = caller or platform.acme
    with platform.store.unit_of_work(caller.actor) as tx:
        return idempotency.claim(tx, caller, sent, made)


def test_the_second_gets_what_the_first_made(platform):
    assert claim(platform, SENT, Made("op_one", "op_one")) is None
    assert claim(platform, SENT, Made("op_two", "op_two")) == Made("op_one", "op_one")


def test_another_body_under_the_same_key_is_refused(platform):
    claim(platform, SENT, Made("op_one", "op_one"))
    with pytest.raises(InvalidInputError) as told:
        claim(platform, Sent(SENT.route, SENT.key, "b" * 64), Made("op_two", "op_two"))
    assert told.value.code == "idempotency.key_reused"


def test_keys_of_another_route_and_another_tenant_are_others(platform):
    claim(platform, SENT, Made("op_one", "op_one"))
    assert claim(platform, Sent("create_volume", SENT.key, SENT.body_mac), Made("op_2", "op_2")) is None
    assert claim(platform, SENT, Made("op_3", "op_3"), platform.globex) is None


def test_what_was_taken_back_left_no_key(platform):
    def fail() -> None:
        with platform.store.unit_of_work(platform.acme.actor) as tx:
            idempotency.claim(tx, platform.acme, SENT, Made("op_one", "op_one"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert claim(platform, SENT, Made("op_two", "op_two")) is None


def test_fifty_at_once_make_one(platform):
    answers: list[Made | None] = []

    def send(number: int) -> None:
        answers.append(claim(platform, SENT, Made(f"op_{number}", f"op_{number}")))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers.count(None) == 1
    assert len({answer for answer in answers if answer is not None}) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "ü", "a\n", "\x00"])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(InvalidInputError) as told:
        idempotency.check_key(key)
    assert told.value.code == "idempotency.key"
