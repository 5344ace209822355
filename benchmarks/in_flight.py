"""A thousand requests at once in one process: time, memory, and none that did not leave in time."""

from __future__ import annotations

from statistics import median

from .mapped import ANSWER_SECONDS, slow_provider
from .report import Section, Verdict
from .workers import Worker, paired_ratio, progress

SUBJECTS = {
    "ours": "a step of ours: SQLite ledger, answers recorded",
    "plain": "pydantic-ai's `Agent.run`",
}
MAX_TIME, MAX_MEMORY, MAX_REFUSED = 0.75, 1.05, 0.0
WHY_MEMORY = (
    "by tracemalloc a request of plain pydantic-ai holds 103.6 kB (pydantic_ai 22, contextlib 16, "
    "anyio 13, the code of generated dataclasses 9, httpx2 7, locks 5, copy 5, openai 5, graph 5, "
    "httpcore2 5), one of ours 120. Of the 16 kB more, 10.2 are fastroai's own frames and objects "
    "(eleven coroutine frames of 200 to 700 bytes between a step and the client, the entry and its "
    "books), 1.3 pydantic_ai's, 1.2 anyio's, 2 asyncio's. Tried, and kept: one object for what "
    "attempts tell the books, no cycles of references, a frame fewer on an answer's way; tried, "
    "and without effect: the collector's threshold."
)


def measure(quick: bool) -> Section:
    rounds, requests = (1, 300) if quick else (3, 1_000)
    progress("in flight")
    figures: dict[str, list[dict[str, float]]] = {subject: [] for subject in SUBJECTS}
    with slow_provider() as port:
        env = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "unused"}
        for number in range(rounds):
            for subject in sorted(SUBJECTS, reverse=number % 2 == 1):
                with Worker("in_flight_worker.py", env=env) as worker:
                    worker.ask(subject=subject, requests=20)
                    figures[subject].append(worker.ask(subject=subject, requests=requests))

    def of(subject: str, name: str) -> list[float]:
        return [figure[name] for figure in figures[subject]]

    def beside(name: str) -> float:
        return paired_ratio(of("ours", name), of("plain", name))

    return Section(
        title=f"In flight: {requests:,} requests at once in one process",
        method=(
            "Each asks a provider on loopback, through the client that pydantic-ai makes for "
            f"OpenAI's, that answers after {ANSWER_SECONDS:g} s. Memory is the most that the "
            "process had beyond what it had before, divided by the requests. Median of "
            f"{rounds} alternating rounds, each in a process of its own that has asked 20 times "
            "before. Refused are requests that ended before they left, and were sent again."
        ),
        header=["what", "seconds", "processor, ms a request", "kB a request", "refused, most"],
        rows=[
            [
                label,
                f"{median(of(subject, 'seconds')):.2f}",
                f"{median(of(subject, 'cpu')) / requests * 1e3:.2f}",
                f"{median(of(subject, 'bytes')) / requests / 1024:.0f}",
                f"{max(of(subject, 'refused')):.0f}" if subject == "ours" else "–",
            ]
            for subject, label in SUBJECTS.items()
        ],
        verdicts=[
            Verdict("time beside `Agent.run`", beside("seconds"), MAX_TIME),
            Verdict("memory beside `Agent.run`", beside("bytes"), MAX_MEMORY, WHY_MEMORY),
            Verdict("requests that did not leave in time", max(of("ours", "refused")), MAX_REFUSED),
        ],
    )
