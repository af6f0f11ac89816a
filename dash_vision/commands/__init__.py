"""The subcommands of `dash-vision` that are no trainer and no figure."""
