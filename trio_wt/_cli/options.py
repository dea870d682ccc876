"""What options of several commands have in common."""

from __future__ import annotations

import math
from pathlib import Path

import click

from .webtransport_connect import certificate_hash

__all__ = ["check_trust", "read_hashes", "read_seconds"]


def read_hashes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[bytes, ...]:
    """Hashes of certificates."""
    try:
        return tuple(map(certificate_hash, values))
    except ValueError as exc:
        raise click.BadParameter(f"{exc}.") from None


def read_seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """A number of seconds."""
    if math.isnan(value) or value < 0:
        raise click.BadParameter(f"{value} is not a number of seconds.")
    return value


def check_trust(cafile: Path | None, hashes: tuple[bytes, ...], *, insecure: bool) -> None:
    """Check that there is one way to tell the server's certificate by, and warn where there is none.

    Raises:
        click.UsageError: there are several.
    """
    if cafile is not None and insecure:
        raise click.UsageError("--cafile and --insecure exclude each other.")
    if hashes and (insecure or cafile is not None):
        raise click.UsageError("--server-certificate-hash excludes --cafile and --insecure.")
    if insecure:
        click.echo(
            "WARNING: --insecure: the server's certificate is NOT verified; "
            "anybody in between can read and change everything.",
            err=True,
        )
