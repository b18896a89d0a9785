"""What all tests share."""

import os

# Tests may run on a debug build, and the programs that they start as well; pyproject.toml says the
# same of the tests themselves. Every other warning stays as it is.
TOLERATED = "ignore:ironbus is a debug build:RuntimeWarning"
os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), TOLERATED)))
