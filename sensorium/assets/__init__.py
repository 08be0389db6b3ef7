"""Public sample media, downloaded on first use."""
