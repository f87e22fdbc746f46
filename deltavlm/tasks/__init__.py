"""Text and its meaning: for each question a prompt, a way to write the answer and a way to read it.

Knows neither pixels nor the model.
"""

from __future__ import annotations
