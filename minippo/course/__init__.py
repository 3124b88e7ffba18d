"""What the course itself needs: its demo."""
