"""Summaries of finished outputs: totals by area, a one-page document, STAC items."""
