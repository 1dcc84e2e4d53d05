"""From the bytes of a file to its title, sections and metadata; see docs/reference/knowledge-parsing.md."""
