"""Evaluation of models and predictions on datasets, under the protocols `strict` and `paper`."""
