"""One file per subcommand of `prism`; each is a function of its own name.

What a subcommand works with is imported in that function, so that `--help` and completion need
not wait for it.
"""
