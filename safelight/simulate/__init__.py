"""What a run takes, before it is run."""
