"""The command line of ironbus, behind the extra ``cli``. Nothing here is imported by the bus."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; the entry point of the script ``ironbus``."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as missing:
        print(
            f'ironbus: the command line needs {missing.name}, which is not installed: pip install "ironbus[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    from ironbus.cli.app import app

    app(prog_name="ironbus")


__all__ = ["main"]
