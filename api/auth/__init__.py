"""Who shows up: tokens and identity providers. No rules live here; the gate decides."""
