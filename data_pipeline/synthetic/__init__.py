"""Seeded makers of Korean text with real grammar: documents, instruction rows, and zips in AIHub's shape."""
