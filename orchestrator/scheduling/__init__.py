"""Who runs next. Pure: values in, values out; no clock, no chance, no effects."""
