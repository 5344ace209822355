"""A model that answers in process, from what it is given to read."""
