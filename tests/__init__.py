"""Tests, in one folder per package; this file makes `tests.scripted_model` importable from all of them."""
