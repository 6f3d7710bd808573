"""What `prism comm` adds up: the files that a run left."""
