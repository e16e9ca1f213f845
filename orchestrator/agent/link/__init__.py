"""The agent's side of the link to its controller: it dials, and listens for nothing.

`certificates` is who this host is, `pin` how it believes its controller the first time, `client` the
protocol, `session` the life of one host over it, `streams` and `consoles` its terminals, `upkeep` the next
certificate, `controller_keys` and `keys` where volume keys come from.
"""
