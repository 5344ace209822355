"""Fingerprints: what a step does, as one hash that is the same in every process and machine.

A fingerprint is part of the key of a stored result. It changes with the step's code, data, prompts,
models, tools and output type, and with nothing else: docs/caching.md has the whole list.

- `steps` turns whatever a step refers to into plain lists, and hashes them.
- `functions` reads the source of a function, and what it refers to.
- `classes`, `agents` and `values` describe objects of these kinds.
- `code_origin` tells own code, which is followed, from libraries, of which the names count.

`@step(version="3")` takes a version instead of the code. Descriptions must never change for the
same step: its stored results would not be found any more, and be paid for again. Golden keys in
tests/unit/test_golden_keys.py hold that.
"""
