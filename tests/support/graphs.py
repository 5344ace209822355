"""Random graphs of steps."""

from __future__ import annotations

from hypothesis import strategies as st

Graph = dict[str, list[str]]


@st.composite
def graphs(draw: st.DrawFn, *, largest: int = 12) -> Graph:
    """Dependencies of up to so many steps, given in an order that is not their own."""
    size = draw(st.integers(1, largest))
    ids = draw(st.permutations([f"s{i}" for i in range(size)]))
    graph: Graph = {}
    for number, step_id in enumerate(ids):
        graph[step_id] = (
            draw(st.lists(st.sampled_from(ids[:number]), unique=True, max_size=4)) if number else []
        )
    return {step_id: graph[step_id] for step_id in draw(st.permutations(ids))}
