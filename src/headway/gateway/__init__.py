"""The request path: from an authenticated request to an answer and its record."""
