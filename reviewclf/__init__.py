"""reviewclf: keeps a classifier of Russian marketplace reviews fresh.

The package holds every stage of the nightly run as a plain function; ``dags/`` schedules them and the ``reviewclf``
command runs them in one process.
"""

__version__ = "0.1.0"
