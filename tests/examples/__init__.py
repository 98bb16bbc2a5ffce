"""Parts that somebody's own package adds, as the guides show them; each is installed and used by a test."""
