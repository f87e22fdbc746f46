"""Pipeline of a run: pairs are read chip by chip, analyzed by a model, and written as features."""

from __future__ import annotations
