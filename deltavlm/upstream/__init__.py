"""The published weights, as their authors ship them, into ours: fetch, inspect, convert, verify.

Everything that knows a name, a file or a habit of github.com/hanlinwu/DeltaVLM is in this room. What leaves
it is a checkpoint folder like any other.
"""
