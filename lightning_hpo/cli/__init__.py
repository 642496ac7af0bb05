"""The command line: LightningCLI with the subcommand ``tune``."""
