"""What may be sent and what comes back, one noun one file. In and Out are separate on purpose."""
