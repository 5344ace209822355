"""Storage of results: reading, writing, signing and retention."""
