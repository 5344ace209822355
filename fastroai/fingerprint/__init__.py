"""What a step's code is, as one text that is the same everywhere."""
