"""Whole published experiments: several studies, their rivals and their tests, fixed beforehand, run by one command."""
