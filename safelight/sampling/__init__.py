"""Samplers by the names people know, and what makes their pictures larger."""
