"""Fingerprints: what a step does, as one hash that is the same in every process and machine.

`steps` turns whatever a step refers to into plain lists and hashes them: with `functions` (source),
`classes`, `agents` and `values`; `code_origin` tells own code, which is followed, from libraries.
`@step(version="3")` takes a version instead of the code. The description of a step must never
change: its stored results would be paid for again. docs/caching.md has the whole list.
"""
