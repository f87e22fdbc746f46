"""The tests mirror the packages; this file makes `tests.scripted_model` importable from all of them."""
