"""Other methods, one a file, behind one interface, tuned and compared by the same protocol."""
