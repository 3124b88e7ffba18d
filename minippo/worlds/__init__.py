"""Worlds small enough to know the truth: reviews with a hidden reward, and 40 listed responses."""
