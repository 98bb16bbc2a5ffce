"""What labelling and writing share of a language model behind a server: asking it, and reading what it answers."""
