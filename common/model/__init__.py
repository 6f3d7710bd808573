"""The frozen generator and its masks."""
