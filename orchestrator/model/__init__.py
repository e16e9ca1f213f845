"""The nouns of Bulkhead: frozen values without I/O, one noun one file."""
