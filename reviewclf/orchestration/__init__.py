"""What DAGs and plugins share of Airflow: calling a stage from a task, alerts, notes, links, pages and pools."""
