"""Grading: files of functions, homework with different conventions, and bug diagnosis."""
