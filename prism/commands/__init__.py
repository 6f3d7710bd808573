"""One file per subcommand of `prism`; each is a function of its own name."""
