"""Audit records: exact bytes, commitments, exports, verification. Pure; store and controller call it."""
