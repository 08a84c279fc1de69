"""The `itwinai` command, one file per subcommand."""
