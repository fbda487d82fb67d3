"""One module per subcommand of `s4d-train`: `add_parser(subparsers)` and `run(args) -> int`."""
