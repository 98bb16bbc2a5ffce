"""Pages for people: what to promote, and why. They know MLflow through the registry's room alone, and no Airflow."""
