"""The demonstration that needs no judged data: its collection is the API reference of installed libraries."""
