"""One file per search strategy; `mergesearch.search.registry` finds them by their class."""
