"""What others do on the same work: one-process references, with the bytes they would send."""
