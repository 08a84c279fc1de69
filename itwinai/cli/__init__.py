"""The `itwinai` command, one file or folder per subcommand."""
