"""The course's demo."""
