"""What must survive a restart: users, sessions, tokens, failed logins, keys.

Stores answer with plain frozen values and close every transaction before they return,
so nobody above this floor ever holds a database connection.
"""
