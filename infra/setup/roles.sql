-- Roles and databases of the platform; run at every start, so everything here may be there already.
-- `celery` is what workers report their results to: they have no way into Airflow's own database.
\getenv airflow AIRFLOW_DB_PASSWORD
\getenv celery CELERY_DB_PASSWORD
\getenv mlflow MLFLOW_DB_PASSWORD

SELECT format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION', name)
FROM unnest(ARRAY['airflow', 'celery', 'mlflow']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

ALTER ROLE airflow PASSWORD :'airflow' CONNECTION LIMIT 120;
ALTER ROLE celery PASSWORD :'celery' CONNECTION LIMIT 40;
ALTER ROLE mlflow PASSWORD :'mlflow' CONNECTION LIMIT 30;

SELECT format('CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING ''UTF8'' LOCALE ''C.UTF-8''', name, owner)
FROM (VALUES ('airflow', 'airflow'), ('celery', 'celery'), ('mlflow', 'mlflow'), ('mlflow_accounts', 'mlflow')) AS d (name, owner)
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec

-- Whoever may log in may by default connect to every database.
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', datname) FROM pg_database WHERE datname <> 'template0' \gexec
