"""What came of the items of a mapped step, while they are worked on."""

from __future__ import annotations

import asyncio

from fastroai.pipelines.item_outputs import ItemOutputs


async def test_an_output_that_another_thread_adds_wakes_who_reads_them() -> None:
    """A step may run in another thread than the one that is mapped over it."""
    loop, outputs = asyncio.get_running_loop(), ItemOutputs()
    loop.set_debug(True)  # in which asyncio says so where a thread's loop is not woken
    arriving = outputs.arriving()
    reading = asyncio.ensure_future(anext(arriving))
    await asyncio.sleep(0)
    await asyncio.to_thread(outputs.add, "first", 1, None)
    assert await reading == "first"
    ending = asyncio.ensure_future(anext(arriving, None))
    await asyncio.sleep(0)
    await asyncio.to_thread(outputs.end)
    assert await ending is None
