"""The nouns of prewarm and the ground rules for files. Imports nothing else of prewarm."""
