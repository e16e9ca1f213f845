"""The command line and the client, against an API that is played in process."""
