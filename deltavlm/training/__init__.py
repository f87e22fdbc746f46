"""Fits a model to examples and scores it: config -> batches -> loop -> checkpoint -> evaluate."""
