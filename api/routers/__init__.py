"""The public API's routes, one noun one file. A route names its action and calls the controller; no rules."""
