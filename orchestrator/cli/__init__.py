"""The operators' and tenants' commands, one noun one file, over the HTTP client.

It decides nothing that a server decides, and never reaches into the agent: what runs on a host
are the commands of `orchestrator.processes`. Empty until there is a server to talk to, so that the import
rules hold from the first commit.
"""
