"""Examples on disk and made ones: what the model is trained and scored on."""
