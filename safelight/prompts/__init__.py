"""Prompts in A1111's syntax: what they mean, as text and numbers, and how they enter a CLIP pipeline."""
