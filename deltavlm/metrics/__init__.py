"""Numbers from lists; pure functions."""
