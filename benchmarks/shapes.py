"""The step graphs that are measured, as plain dependency dicts."""

from __future__ import annotations

import random
from dataclasses import dataclass

Dependencies = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Shape:
    """One graph: every step id with the ids it waits for, in an order where dependencies come
    first.
    """

    name: str
    dependencies: Dependencies

    @property
    def output_step(self) -> str:
        return next(reversed(self.dependencies))

    def __len__(self) -> int:
        return len(self.dependencies)


# asyncio's timers wake about 1 ms late: along a path of 10 ms steps that alone would be a tenth.
TIME_SCALE = 2


@dataclass(frozen=True, slots=True)
class UnevenShape(Shape):
    """A graph whose steps sleep for different times, in seconds."""

    sleeps: dict[str, float]

    @property
    def critical_path(self) -> float:
        """Seconds of the longest way through the graph: no scheduler can be faster."""
        ends: dict[str, float] = {}
        for step_id, upstream in self.dependencies.items():
            ends[step_id] = self.sleeps[step_id] + max(
                (ends[other] for other in upstream), default=0.0
            )
        return max(ends.values())

    @property
    def level_by_level(self) -> float:
        """Seconds a scheduler takes that starts a level only when the one before has ended."""
        depth: dict[str, int] = {}
        slowest: dict[int, float] = {}
        for step_id, upstream in self.dependencies.items():
            level = depth[step_id] = 1 + max((depth[other] for other in upstream), default=0)
            slowest[level] = max(slowest.get(level, 0.0), self.sleeps[step_id])
        return sum(slowest.values())


def chain(size: int) -> Shape:
    """Each step waits for the one before."""
    return Shape("chain", {f"s{i}": [f"s{i - 1}"] if i else [] for i in range(size)})


def wide(size: int) -> Shape:
    """No step waits for another."""
    return Shape("wide", {f"s{i}": [] for i in range(size)})


def ladder(size: int) -> Shape:
    """Two rails; each step waits for both steps of the rung before."""
    dependencies: Dependencies = {}
    for rung in range(size // 2):
        upstream = [f"a{rung - 1}", f"b{rung - 1}"] if rung else []
        dependencies[f"a{rung}"] = upstream
        dependencies[f"b{rung}"] = list(upstream)
    return Shape("ladder", dependencies)


SHAPES = {"chain": chain, "wide": wide, "ladder": ladder}


def uneven_shapes() -> list[UnevenShape]:
    """Graphs of 20 to 40 steps that sleep 20 to 120 ms, the same ones on every machine."""
    return [
        _crossed_rails(),
        _slow_branch(),
        _random_graph(30, seed=7),
        _random_graph(40, seed=11),
        _tree(),
    ]


def _crossed_rails() -> UnevenShape:
    """Two rails that are slow in turn: level by level, every level costs its slower half."""
    dependencies: Dependencies = {}
    sleeps: dict[str, float] = {}
    for i in range(10):
        for rail, slow in (("a", i % 2 == 0), ("b", i % 2 == 1)):
            dependencies[f"{rail}{i}"] = [f"{rail}{i - 1}"] if i else []
            sleeps[f"{rail}{i}"] = 0.06 if slow else 0.01
    return _joined("alternating rails", dependencies, sleeps, ["a9", "b9"])


def _slow_branch() -> UnevenShape:
    """One long quick chain beside steps that are slow and join late."""
    dependencies: Dependencies = {"root": []}
    sleeps = {"root": 0.01}
    for i in range(16):
        dependencies[f"quick{i}"] = [f"quick{i - 1}"] if i else ["root"]
        sleeps[f"quick{i}"] = 0.02
    for i in range(8):
        dependencies[f"slow{i}"] = [f"quick{2 * i}"]
        sleeps[f"slow{i}"] = 0.06
    return _joined(
        "slow side branches", dependencies, sleeps, ["quick15", *(f"slow{i}" for i in range(8))]
    )


def _random_graph(size: int, seed: int) -> UnevenShape:
    rng = random.Random(seed)
    dependencies: Dependencies = {}
    for i in range(size - 1):
        nearby = range(max(0, i - 6), i)
        dependencies[f"s{i}"] = [
            f"s{j}" for j in sorted(rng.sample(nearby, min(len(nearby), rng.randint(0, 2))))
        ]
    sleeps = {step_id: rng.randint(10, 60) / 1000 for step_id in dependencies}
    waited_for = {upstream for ids in dependencies.values() for upstream in ids}
    return _joined(
        f"random, {size} steps",
        dependencies,
        sleeps,
        [s for s in dependencies if s not in waited_for],
    )


def _tree() -> UnevenShape:
    """Sixteen leaves joined two by two; the sleeps of a level lie far apart."""
    rng = random.Random(3)
    level = [f"leaf{i}" for i in range(16)]
    dependencies: Dependencies = {leaf: [] for leaf in level}
    while len(level) > 2:
        parents = [f"{len(level)}to{i}" for i in range(len(level) // 2)]
        for i, parent in enumerate(parents):
            dependencies[parent] = level[2 * i : 2 * i + 2]
        level = parents
    sleeps = {step_id: rng.choice([0.01, 0.02, 0.06]) for step_id in dependencies}
    return _joined("joining tree", dependencies, sleeps, level)


def _joined(
    name: str, dependencies: Dependencies, sleeps: dict[str, float], ends: list[str]
) -> UnevenShape:
    times = {step_id: TIME_SCALE * seconds for step_id, seconds in {**sleeps, "join": 0.01}.items()}
    return UnevenShape(name, {**dependencies, "join": ends}, times)
