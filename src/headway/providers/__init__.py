"""LLM endpoints: how to reach them, authenticate, and hear what went wrong."""
