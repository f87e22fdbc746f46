"""Answers against references: two named protocols, one table."""
