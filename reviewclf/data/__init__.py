"""Reviews on their way in and to training: sources, checks, cleaning, gold, the dataset."""
