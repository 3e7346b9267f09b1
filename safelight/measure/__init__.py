"""Plain against planned, in seconds, bytes and picture."""
