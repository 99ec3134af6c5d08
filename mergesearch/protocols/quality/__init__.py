"""The quality protocol: what searched merges are worth on test, on several collections, fixed before test is read."""
