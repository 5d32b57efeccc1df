"""Settings of the whole suite."""

import os

from hypothesis import settings

os.environ["FASTCONV_TUNING"] = "off"  # the tests expect the choices of the cost model, not those measured here
os.environ.pop("FASTCONV_RECORD", None)

settings.register_profile("fastconv", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("fastconv")
