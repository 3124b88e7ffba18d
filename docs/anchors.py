"""Anchors of headings, the same on the site as in JupyterLab."""


def of_heading(title: str) -> str:
    """Return a heading's anchor: its words with dashes between them."""
    return title.replace(" ", "-")
