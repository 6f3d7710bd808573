"""The `prism` command, one file per subcommand."""
