"""The report of a study: one page that says what was found, how sure that is, and how to have it again."""
