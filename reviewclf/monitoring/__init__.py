"""Whether the reviews, the answers and the confidence of the champion are still what they were."""
