"""Metrics of answers against references, and their bootstrap intervals; pure functions."""
