"""One file per merge method. A file put here is registered, searched, documented and tested by that."""
