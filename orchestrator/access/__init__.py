"""Who may do what: roles, scopes, the action table, token formats. Pure; the controller's gate calls it."""
