"""Unit scaling: the factors as functions of floats (`rules`), and drop-in functions that carry them (`functional`)."""
