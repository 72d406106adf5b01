"""What both demos need; a link in each folder leads here."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import click


def arforge(*arguments: str | Path) -> None:
    """Run the command line, showing the command as a user would type it."""
    words = [str(argument) for argument in arguments]
    click.echo(f"$ arforge {' '.join(words)}")
    subprocess.run([sys.executable, "-m", "arforge", *words], check=True)


def learning_rate(step: int, steps: int, warm: int = 200) -> float:
    """Share of the peak rate: linear up over `warm` steps, then half a cosine down to 2 %."""
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
