"""The database: tables by noun, queries that take a tenant scope and return model values, migrations.

The only SQL of the project. Decides nothing about what may happen; the controller calls it. Never touches a
host, and no transaction is open across an effect.
"""
