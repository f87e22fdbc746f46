"""Evaluation of models and predictions on datasets, under three protocols."""
