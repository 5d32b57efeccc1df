"""Settings of the whole suite."""

from hypothesis import settings

settings.register_profile("fastconv", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("fastconv")
