"""Grading: files of functions, homework with other conventions, and a diagnosis of bugs."""
