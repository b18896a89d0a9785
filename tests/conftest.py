"""What all tests share."""

import os
import signal

# Tests may run on a debug build, and the programs that they start as well; pyproject.toml says the
# same of the tests themselves. Every other warning stays as it is.
TOLERATED = "ignore:ironbus is a debug build:RuntimeWarning"
os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), TOLERATED)))

# Whoever starts the tests in the background may have them ignore Ctrl-C, and every program that
# they start with them; tests of interrupts would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
