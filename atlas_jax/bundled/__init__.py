"""The pair of small trained models that ships with the package: a subject, and a Concept Atlas."""

from pathlib import Path

SUBJECT = Path(__file__).parent / "subject"
ATLAS = Path(__file__).parent / "atlas"
