"""One policy of retries: how often, how long in between, what is raised in the end."""

from __future__ import annotations

import asyncio
import math

import pytest

from fastroai.pipelines.config import StepConfig, retry_delay
from fastroai.retries import Backoff, retry, retry_blocking


class Fails:
    """Fails so many times; notes the numbers of its attempts."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.errors = [ConnectionError(str(n)) for n in range(times)]
        self.attempts: list[int] = []

    def __call__(self, number: int) -> str:
        self.attempts.append(number)
        if number <= self.times:
            raise self.errors[number - 1]
        return "answer"


def at_most(retries: int, backoff: Backoff = Backoff(1.0)):  # noqa: B008  # it is frozen
    return lambda error, failures: backoff.after(failures) if failures <= retries else None


async def insist(call: Fails, retries: int) -> tuple[str, list[float]]:
    slept: list[float] = []

    async def attempt(number: int) -> str:
        return call(number)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    return await retry(attempt, at_most(retries), sleep=sleep), slept


def insist_blocking(call: Fails, retries: int) -> tuple[str, list[float]]:
    slept: list[float] = []
    return retry_blocking(call, at_most(retries), sleep=slept.append), slept


@pytest.fixture(params=["in a loop", "blocking"])
def insisting(request: pytest.FixtureRequest):
    if request.param == "blocking":
        return insist_blocking
    return lambda call, retries: asyncio.run(insist(call, retries))


def test_what_succeeds_is_called_once(insisting):
    call = Fails(0)
    assert insisting(call, 3) == ("answer", [])
    assert call.attempts == [1]


def test_each_failure_is_followed_by_a_longer_wait(insisting):
    call = Fails(3)
    assert insisting(call, 3) == ("answer", [1.0, 2.0, 4.0])
    assert call.attempts == [1, 2, 3, 4]


def test_the_last_error_is_raised_as_it_is(insisting):
    call = Fails(3)
    with pytest.raises(ConnectionError) as caught:
        insisting(call, 2)
    assert caught.value is call.errors[2]
    assert call.attempts == [1, 2, 3]


def test_a_cancellation_is_no_failure():
    async def cancelled(number: int) -> None:
        assert number == 1
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(retry(cancelled, lambda error, failures: 0.0))


@pytest.mark.parametrize(
    ("backoff", "failures", "seconds"),
    [
        (Backoff(0.5), 1, 0.5),
        (Backoff(0.5), 4, 4.0),
        (Backoff(0.5, longest=3.0), 4, 3.0),
        (Backoff(5.0, longest=3.0), 1, 3.0),
        (Backoff(0.0), 5000, 0.0),
        (Backoff(1.0, longest=30.0), 5000, 30.0),
        (Backoff(1e300), 5000, math.inf),
    ],
)
def test_delays_double_up_to_the_longest(backoff: Backoff, failures: int, seconds: float):
    assert backoff.after(failures) == seconds


def test_thousands_of_retries_without_a_delay_are_no_overflow():
    assert retry_delay(StepConfig(retry_delay=0.0), 5000) == 0.0
