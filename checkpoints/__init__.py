"""Weights that were trained here and come along."""

from pathlib import Path

MINI = Path(__file__).parent / "mini"
