"""From a candidate to production: the rules of the gate, its report, the aliases, their history and what is kept."""
