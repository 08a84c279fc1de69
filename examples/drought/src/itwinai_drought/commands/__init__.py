"""The subcommands of ``itwinai drought``, one file each."""
