"""What `prism run` needs besides server and client: processes, display, certificate."""
