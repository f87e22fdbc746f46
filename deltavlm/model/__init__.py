"""DeltaVLM in PyTorch: image pairs and questions in, text and change masks out; no geodata."""
