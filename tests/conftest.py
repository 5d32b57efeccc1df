"""Settings of the whole suite."""

import importlib.util
import os
import signal

os.environ["FASTCONV_TUNING"] = "off"  # the tests expect the choices of the cost model, not those measured here
os.environ.pop("FASTCONV_RECORD", None)

# A shell that starts the suite in the background has it ignore Ctrl-C, and what ignores it is not interrupted by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis"):  # bench/gpu.sh runs some of the suite where there is nothing but pytest
    from hypothesis import settings

    settings.register_profile("fastconv", derandomize=True, deadline=None, database=None, max_examples=60)
    settings.load_profile("fastconv")
