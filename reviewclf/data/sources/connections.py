"""The address of a database from the fields of a connection, as Airflow and other tools keep them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from reviewclf.errors import SettingsError

_TLS = ("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl")
# By type of connection: SQLAlchemy's name, and the extras that its driver understands. Others are for other tools.
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sqlite": ("sqlite", ("timeout",)),
    "postgres": (
        "postgresql",
        (*_TLS, "connect_timeout", "options", "application_name", "target_session_attrs", "keepalives", "keepalives_idle"),
    ),
    "mysql": ("mysql", ("charset", "connect_timeout", "unix_socket", "ssl_ca", "ssl_cert", "ssl_key")),
    "mssql": ("mssql", ("driver", "charset", "tds_version", "Encrypt", "TrustServerCertificate", "timeout", "login_timeout")),
    "oracle": ("oracle", ("service_name", "encoding")),
}
_SAME = {"postgresql": "postgres", "mariadb": "mysql"}


def connection_url(
    name: str,
    *,
    kind: str | None,
    host: str | None = None,
    port: int | None = None,
    login: str | None = None,
    password: str | None = None,
    schema: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """A SQLAlchemy URL, with its password.

    Parameters
    ----------
    name : str
        Of the connection, for messages.
    kind : str or None
        ``sqlite``, ``postgres``, ``mysql``, ``mssql`` or ``oracle``.
    host, port, login, password : optional
        Of the server. The file of SQLite is `host`, `schema`, or one below the other.
    schema : str, optional
        Name of the database.
    extra : mapping, optional
        ``sqlalchemy_scheme`` names another driver, such as ``mysql+pymysql``. Of the others only plain values that the driver
        knows are handed on.

    Raises
    ------
    SettingsError
        The kind is none of these, or something needed is missing; nothing secret is shown.
    """
    from sqlalchemy.engine import URL

    extra = extra or {}
    kind = _SAME.get((kind or "").lower(), (kind or "").lower())
    if kind not in _KINDS:
        raise SettingsError(f"{name}: a connection of type {kind or 'none'!r} is no source; it may be {', '.join(_KINDS)}")
    dialect, known = _KINDS[kind]
    query = {key: _option(extra[key]) for key in known if isinstance(extra.get(key), str | int | float)}
    if kind == "sqlite":
        return URL.create(dialect, database=_file(name, host, schema), query=query).render_as_string(hide_password=False)
    scheme = str(extra.get("sqlalchemy_scheme") or dialect)
    if scheme.partition("+")[0] not in (dialect, "mariadb" if kind == "mysql" else dialect):
        raise SettingsError(f"{name}: sqlalchemy_scheme={scheme!r} in its extra does not fit its type {kind!r}")
    if not host and "unix_socket" not in query:
        raise SettingsError(f"{name}: the connection names no host")
    user = {"username": login or None, "password": password or None}
    url = URL.create(scheme, **user, host=host or None, port=port, database=schema or None, query=query)
    return url.render_as_string(hide_password=False)


def _file(name: str, host: str | None, schema: str | None) -> str:
    parts = [part for part in (host, schema) if part and part != "localhost"]
    if not parts:
        raise SettingsError(f"{name}: the connection names no file; write the path of the SQLite database into its host")
    return str(PurePosixPath(*parts))


def _option(value: str | float) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
