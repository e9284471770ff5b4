"""The command line: parsing and printing. What is computed lives in the library."""
