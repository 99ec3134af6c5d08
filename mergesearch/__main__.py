"""`python -m mergesearch`: the program, where its script is not on the path."""

from mergesearch.cli import main

main()
