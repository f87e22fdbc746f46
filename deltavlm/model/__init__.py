"""Arrays and text: DeltaVLM itself. Knows nothing of files on a map."""
