"""What speaks HTTP: the public app, the agents' app, routers, schemas, auth, problems, events, console.

It decides nothing: a route checks who asks and what was sent, and calls `orchestrator.controller`. It never
touches the store, a host or libvirt. `orchestrator.processes` will start its apps; nothing else imports it.
Empty until the controller exists, so that the import rules hold from the first commit.
"""
