"""What is here: devices, packages, models."""
