"""How the console tells a user's mistake from a fault of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def clear_errors() -> Iterator[None]:
    """Bad input ends in one line and status 1; anything else is a fault of ours and shows where."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError, ImportError, ConnectionError, FloatingPointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
