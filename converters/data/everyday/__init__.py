"""The questions that models are calibrated on where none are given: photographs, pages, tables, charts, screens and signs."""

from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"
NAME = "everyday"
FILE = FOLDER / "samples.jsonl"
