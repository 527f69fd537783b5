"""What several tests share: small teachers, students, caches and servers, made anew and seeded."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository: what processes of their own start in, or have on their path."""
