"""How Alembic runs a migration: on the connection it is handed, one transaction per revision."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
