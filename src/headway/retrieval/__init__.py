"""Search indexes: documents cut into chunks, embedded, and found again."""
