"""One training process: private images stay here."""
