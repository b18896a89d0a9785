"""``python -m ironbus.cli`` is the script ``ironbus``."""

from ironbus.cli import main

main()
