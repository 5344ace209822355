"""A model that answers in process, with sentences of the text it is given."""
