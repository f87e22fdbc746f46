"""Fetch, inspect, convert and verify the published weights of github.com/hanlinwu/DeltaVLM.

Everything that depends on names, files or conventions of that project is in this package. Its output is a
checkpoint folder like any other.
"""
