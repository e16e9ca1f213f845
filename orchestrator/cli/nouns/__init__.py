"""The nouns of the command line, one a file: its columns and its commands. They hold no rules."""
