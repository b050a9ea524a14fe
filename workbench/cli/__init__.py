"""The command line: one module a group of commands, one place for errors and output."""
