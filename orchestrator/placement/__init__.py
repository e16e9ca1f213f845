"""Where an instance can run, and why not. Pure: values in, values out; no clock, no chance, no effects."""
