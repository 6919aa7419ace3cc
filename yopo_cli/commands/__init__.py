"""One command a file. Nothing heavy is imported at the top of these files, so that `--help` answers at once."""
