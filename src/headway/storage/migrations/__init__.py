"""Migrations: one revision per change of the schema, numbered 0001, 0002, ...; the SQL stays SQL."""
