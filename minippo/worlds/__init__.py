"""Worlds whose ground truth is known: reviews with a hidden reward, and 40 listed responses."""
