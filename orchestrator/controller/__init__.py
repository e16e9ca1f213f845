"""What can be asked for, one noun one file; and the loops that make it so.

Rules live here and in the pure packages it calls, tables in the store, HTTP in `api`. Each function takes an
open unit of work (or a reader) and a caller whose right the gate checked, and returns model values. No effect
happens here: agents act on what is committed.
"""
