"""Training of a model: configuration -> batches -> training loop -> checkpoints -> exported model."""
