"""The command line: commands, run directories, progress, pictures."""
