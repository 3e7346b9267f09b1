"""Running a loaded pipeline: from a request to pictures in files that say how they were made."""
