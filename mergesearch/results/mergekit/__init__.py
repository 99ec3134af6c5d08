"""Configurations of mergekit: written beside exports, and read as the start of a study."""
