"""The arithmetic of rate limits, on clocks of the test's own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.provider_limits import ProviderLimit
from fastroai.rate_limits.answer_headers import told_by
from fastroai.rate_limits.pools import BURST, MINUTE, NOTHING, SHARE, Amounts, PoolState, Terms
from fastroai.rate_limits.share import Own, Share
from fastroai.rate_limits.shared_pools import Holder
from fastroai.rate_limits.turns import Turn, Waiting

REQUESTS = st.lists(
    st.tuples(st.floats(0, 30), st.integers(0, 8000), st.integers(0, 2000)),
    min_size=1,
    max_size=60,
)
"""Seconds after the one before that a request comes, its input and its output."""


def sent(terms: Terms, asked: list[tuple[float, int, int]]) -> list[tuple[float, Amounts]]:
    """When each of them goes."""
    state, now, goes = PoolState(), 1e9, []
    for pause, input_tokens, output_tokens in asked:
        now = max(now + pause, state.start(terms, now + pause))
        amounts = Amounts.of(input_tokens, output_tokens)
        state.take(terms, amounts, now)
        goes.append((now, amounts))
    return goes


@given(REQUESTS, st.integers(1, 600), st.integers(1000, 100_000))
def test_no_minute_has_more_than_the_limit_but_for_the_last_request(
    asked: list[tuple[float, int, int]], requests: int, tokens: int
) -> None:
    limit = ProviderLimit(requests_per_minute=requests, tokens_per_minute=tokens)
    goes = sent(Terms.of(limit), asked)
    most = SHARE * (1 + BURST)
    for number, (begin, _) in enumerate(goes):
        within = [amounts for at, amounts in goes[number:] if at < begin + MINUTE - 1e-3]
        before_last = [sum(column) for column in zip(*within[:-1], strict=True)] or [0, 0]
        assert before_last[0] <= most * requests
        # What was taken in longer than a minute's debt is forgotten; no request here is that large.
        if tokens >= 10_000:
            assert before_last[1] <= most * tokens
        assert len(within) <= max(requests, 1)


@given(st.integers(1, 600), st.integers(100, 1000))
def test_who_always_asks_is_given_nearly_the_limit(requests: int, tokens_each: int) -> None:
    tokens = requests * tokens_each
    limit = ProviderLimit(requests_per_minute=requests, tokens_per_minute=tokens)
    goes = sent(Terms.of(limit), [(0.0, tokens_each, 0)] * (3 * requests + 1))
    took = goes[-1][0] - goes[0][0]
    assert 3 * requests / took * MINUTE == pytest.approx(SHARE * requests, rel=0.03)


def test_what_was_expected_is_corrected_by_what_was_used() -> None:
    terms = Terms.of(ProviderLimit(tokens_per_minute=6000))
    expected, used = Amounts.of(500, 500), Amounts.of(80, 20)
    state, exact = PoolState(), PoolState()
    state.take(terms, expected, 1e9)
    exact.take(terms, used, 1e9)
    assert state.start(terms, 1e9) > exact.start(terms, 1e9) + 9
    state.add(terms, used - expected)
    assert state.start(terms, 1e9) == pytest.approx(exact.start(terms, 1e9))


def test_a_clock_that_was_set_back_does_not_stop_everything() -> None:
    terms = Terms.of(ProviderLimit(requests_per_minute=60))
    state = PoolState()
    state.take(terms, Amounts.of(0, 0), 1e9)
    state.blocked_until = 1e9 + 30
    assert state.start(terms, 1e9 - 3600) == 1e9 - 3600
    state.take(terms, Amounts.of(0, 0), 1e9 - 3600)
    assert state.start(terms, 1e9 - 3600) < 1e9 - 3590


def test_what_a_provider_says_remains_may_go_at_once_and_then_its_pace() -> None:
    terms = Terms.of(ProviderLimit(requests_per_minute=60), burst=1.0)
    state, one = PoolState(), Amounts.of(0, 0)
    state.hear(terms, (3, None, None, None), one, 1e9)
    starts = []
    for _ in range(5):
        starts.append(max(state.start(terms, 1e9), 1e9) - 1e9)
        state.take(terms, one, 1e9)
    assert starts == pytest.approx([0, 0, 0, 60 / 57, 120 / 57], abs=1e-5)


PROCESSES = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 200)), min_size=2, max_size=5)
"""How many runs each has, and how many requests wait in it."""


@given(PROCESSES, st.randoms(use_true_random=False))
def test_processes_share_a_pool_by_their_runs_and_none_starves(processes, random) -> None:
    """They look in any order, each twice in the time for which turns are given ahead."""
    terms = Terms.of(ProviderLimit(requests_per_minute=1200))
    state, now = PoolState(), 1e9
    own = [Own() for _ in processes]
    waiting = [count for _, count in processes]
    served = [0.0] * len(processes)
    turn = Turn((), None, one, asyncio.Future(loop=_LOOP), Waiting(0), None, False, one())
    looks = 0
    while sum(map(bool, waiting)) > 1:
        looks += 1
        for index in random.sample(range(len(processes)), len(processes)):
            others = [one.row for one in own if one is not own[index] and one.row is not None]
            share = Share(terms, state, own[index], others, now)
            share.waiting, share.runs = waiting[index], processes[index][0]
            if own[index].row is None:
                share.join()
            while share.waiting and share.start(turn) <= now + 0.5:
                share.take(turn)
                share.waiting -= 1
                served[index] += 1
            waiting[index] = share.waiting
            own[index].row = share.row(str(index), 1)
        now += 0.25
        still = [i for i, count in enumerate(waiting) if count]
        given_each = [served[i] / processes[i][0] for i in still]
        # The first one finds what may go at once, and what is given ahead.
        assert not still or max(given_each) - min(given_each) <= 1200 / 60 * (1.5 + 0.5) + 2
    # All but what the last ones don't need is used.
    assert looks < 3 or sum(served) >= SHARE * 1200 / 60 * (looks - 2) * 0.25


_LOOP = asyncio.new_event_loop()
"""Of futures that nobody waits for."""


def one() -> Amounts:
    return Amounts.of(0, 0)


def test_requests_of_a_dead_or_silent_process_are_not_left_to_it() -> None:
    terms = Terms.of(ProviderLimit(requests_per_minute=60, concurrency=2))
    rival = Holder("other", asked_at=1e9, slots=1, waiting=5, runs=1, served=0.0)
    turn = Turn((), None, one, asyncio.Future(loop=_LOOP), Waiting(0), None, False, one())
    mine = Own(served=3.0)
    assert Share(terms, PoolState(), mine, [rival], 1e9).start(turn) == float("inf")
    assert Share(terms, PoolState(), mine, [rival], 1e9 + 2).start(turn) <= 1e9 + 2


def test_what_answers_use_less_makes_up_for_what_others_use_more_and_speeds_up_nothing() -> None:
    own = Own()
    assert own.net(Amounts.of(-30, -10, requests=0)) == NOTHING
    assert own.net(Amounts.of(20, 15, requests=0)) == Amounts(0, 0, 0, 5)
    assert own.net(Amounts.of(15, 0, requests=0)) == Amounts(0, 10, 5, 0)


NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "7"}, 7),
        (429, {"retry-after": "1.5", "retry-after-ms": "250"}, 0.25),
        (429, {"retry-after": "Mon, 30 Nov 2026 12:00:09 GMT"}, 9),
        (429, {"retry-after": "soon"}, 1),
        (429, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        (429, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12ms"}, 0.012),
        (
            429,
            {
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-11-30T12:00:04Z",
            },
            4,
        ),
        (429, {}, 1),
        (200, {"retry-after": "7"}, None),
    ],
)
def test_an_answer_says_how_long_to_wait(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    assert told_by(status, headers, NOW).retry_after == (
        None if seconds is None else pytest.approx(seconds)
    )


@pytest.mark.parametrize(
    ("headers", "is_tight"),
    [
        ({"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "499"}, False),
        ({"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "99"}, True),
        (
            {
                "anthropic-ratelimit-output-tokens-limit": "8000",
                "anthropic-ratelimit-output-tokens-remaining": "0",
            },
            True,
        ),
        ({"x-ratelimit-remaining-requests": "1"}, False),
        ({"x-ratelimit-limit-requests": "?", "x-ratelimit-remaining-requests": "nan"}, False),
    ],
)
def test_an_answer_says_whether_little_is_left(headers: dict[str, str], is_tight: bool) -> None:
    assert told_by(200, headers).is_tight is is_tight


def test_nothing_is_limited_where_nothing_is_said() -> None:
    assert Terms.of(ProviderLimit()) == Terms(burst=BURST * MINUTE)
    assert PoolState().start(Terms(), 5.0, Amounts.of(1e9, 1e9)) == 0.0
    assert NOTHING.requests == 0
