"""Recipes by name, each in a file of its own."""

from .interlaced import interlaced, smallest_plan
from .paper import yopo
from .registry import RECIPES, make_plan
from .target import Target

__all__ = ["RECIPES", "Target", "interlaced", "make_plan", "smallest_plan", "yopo"]
