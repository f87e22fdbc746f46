"""Question sets (reader, check, builder, download) and synthetic scenes, for training and scoring."""
