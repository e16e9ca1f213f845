"""Where settings are read and parts are joined into processes; nothing else may do either."""
