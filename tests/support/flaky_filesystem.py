"""A file system of fsspec in this process, whose reads and writes fail while a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyFileSystem(MemoryFileSystem):
    """`flaky://folder`."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failing: ClassVar[set[str]] = set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://", 1))

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        self._may_fail("read")
        return super().cat_file(path, *args, **options)

    def _open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> Any:
        self._may_fail("read" if mode == "rb" else "write")
        return super()._open(path, mode, *args, **options)

    def pipe_file(self, path: str, value: bytes, *args: Any, **options: Any) -> None:
        self._may_fail("write")
        super().pipe_file(path, value, *args, **options)

    def _may_fail(self, action: str) -> None:
        if action in self.failing:
            raise ConnectionResetError(f"the {action} was interrupted")

    @classmethod
    @contextmanager
    def fails(cls, *actions: str) -> Iterator[None]:
        """Have these fail within the block."""
        cls.failing.update(actions)
        try:
            yield
        finally:
            cls.failing.difference_update(actions)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
