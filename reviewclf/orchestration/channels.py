"""The ways an alert travels: one of Airflow's notifiers for each type of connection.

| connection type | how | what the connection holds beyond the standard fields |
|---|---|---|
| `smtp` | e-mail | extra: `to` (addresses, separated by commas), `from_email`, `disable_ssl`, `disable_tls` |
| `slackwebhook` | Slack, incoming webhook | password: token or whole address |
| `slack` | Slack, bot | password: token; extra: `channel` |
| `telegram` | Telegram bot | password: token; host: chat id; extra: `base_url`, `proxy` |
| `http` | JSON to any webhook | host: whole address; extra: headers, such as `Authorization` |
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook
from airflow.sdk.bases.notifier import BaseNotifier

# Telegram takes 4,096 characters, Slack asks for 4,000 at most.
_MAX_TEXT = 3900
_TELEGRAM_ATTEMPTS = 2


def send(connection_id: str, *, kind: str, subject: str, body: str, timeout: float) -> str | None:
    """Send an alert over a connection.

    Parameters
    ----------
    connection_id : str
        An Airflow connection of one of the types in :data:`CHANNELS`.
    kind, subject, body : str
        The alert.
    timeout : float
        Seconds to wait for each step: connecting, an answer.

    Returns
    -------
    str or None
        Why it was not delivered, without what the connection keeps secret; None when it was.
    """
    secrets: list[str] = []
    try:
        connection = BaseHook.get_connection(connection_id)
        secrets = _secrets_of(connection)
        make = CHANNELS.get(connection.conn_type or "")
        if make is None:
            return f"its type is {connection.conn_type!r}; alerts go over {', '.join(CHANNELS)}"
        text = body if len(body) <= _MAX_TEXT else f"{body[:_MAX_TEXT]} …"
        # Not called as Airflow calls a notifier: that renders the texts as Jinja templates, and what a marketplace's customers
        # or an error message put between braces must never be run.
        make(connection, kind, " ".join(subject.split()), text, timeout).notify({})
    except ModuleNotFoundError as error:
        return f"{error}: install the project with its extra `team`"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        for secret in secrets:
            reason = reason.replace(secret, "***")
        return reason[:500]
    return None


def _secrets_of(connection: Any) -> list[str]:
    """What must not be logged: passwords, and what webhooks carry in the path of their address."""
    secrets = [connection.password or ""]
    for address in (connection.password, connection.host):
        if address and "://" in address:
            secrets.append(urlsplit(address).path.strip("/"))
    return sorted((secret for secret in secrets if len(secret) > 3), key=len, reverse=True)


def _email(connection: Any, _kind: str, subject: str, body: str, timeout: float) -> BaseNotifier:
    from airflow.providers.smtp.hooks.smtp import SmtpHook
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    to = connection.extra_dejson.get("to")
    if not to:
        raise ValueError('the connection\'s extra names nobody to write to: add "to": "team@example.com"')

    class Bounded(SmtpHook):
        """With a time-out of ours: the default is half a minute, five times over."""

        smtp_retry_limit = 1

        @property
        def timeout(self) -> int:
            return max(1, int(timeout))

    notifier = SmtpNotifier(
        to=[address.strip() for address in to.split(",")] if isinstance(to, str) else list(to),
        from_email=connection.extra_dejson.get("from_email") or connection.login,
        subject=f"[reviewclf] {subject}",
        html_content=f"<pre style='white-space: pre-wrap'>{html.escape(body)}</pre>",
        smtp_conn_id=connection.conn_id,
    )
    notifier.hook = Bounded(smtp_conn_id=connection.conn_id)
    return notifier


def _slack_webhook(connection: Any, _kind: str, subject: str, body: str, timeout: float) -> BaseNotifier:
    from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

    return SlackWebhookNotifier(slack_webhook_conn_id=connection.conn_id, **_slack_message(subject, body, timeout))


def _slack(connection: Any, _kind: str, subject: str, body: str, timeout: float) -> BaseNotifier:
    from airflow.providers.slack.notifications.slack import SlackNotifier

    channel = connection.extra_dejson.get("channel")
    if not channel:
        raise ValueError('the connection\'s extra names no channel: add "channel": "#reviews"')
    message = _slack_message(subject, body, timeout)
    return SlackNotifier(slack_conn_id=connection.conn_id, channel=channel, username="reviewclf", **message)


def _slack_message(subject: str, body: str, timeout: float) -> dict[str, Any]:
    # The three characters that Slack gives a meaning; a review could otherwise call the whole channel.
    text = f"*{html.escape(subject, quote=False)}*\n{html.escape(body, quote=False)}"
    return {"text": text, "unfurl_links": False, "timeout": max(1, int(timeout))}


class TelegramNotifier(BaseNotifier):
    """A message of a Telegram bot; the provider has the hook but no notifier.

    Parameters
    ----------
    connection : Connection
        Password: the bot's token; host: the chat; extra: ``base_url`` of a Bot API server of one's own, ``proxy``.
    text : str
        Plain text, 4,096 characters at most.
    timeout : float
        Seconds for each step.
    """

    def __init__(self, connection: Any, text: str, timeout: float) -> None:
        super().__init__()
        self._connection, self._text, self._timeout = connection, text, timeout

    def notify(self, context: Any) -> None:
        """Send the message."""
        import telegram
        import tenacity
        from airflow.providers.telegram.hooks.telegram import TelegramHook
        from telegram.request import HTTPXRequest

        hook = TelegramHook(telegram_conn_id=self._connection.conn_id)
        extra = self._connection.extra_dejson
        seconds: dict[str, Any] = dict.fromkeys(("read_timeout", "write_timeout", "connect_timeout"), self._timeout)
        server: dict[str, Any] = {"base_url": f"{extra['base_url'].rstrip('/')}/bot"} if extra.get("base_url") else {}
        hook.connection = telegram.Bot(hook.token, request=HTTPXRequest(**seconds, proxy=extra.get("proxy")), **server)
        bounded = TelegramHook.send_message.retry_with(stop=tenacity.stop_after_attempt(_TELEGRAM_ATTEMPTS), reraise=True)
        # The hook takes texts for HTML unless told otherwise.
        bounded(hook, {"text": self._text, "parse_mode": None})


def _telegram(connection: Any, _kind: str, subject: str, body: str, timeout: float) -> BaseNotifier:
    return TelegramNotifier(connection, f"{subject}\n\n{body}", timeout)


def _webhook(connection: Any, kind: str, subject: str, body: str, timeout: float) -> BaseNotifier:
    from airflow.providers.http.notifications.http import HttpNotifier

    # `text` is what Mattermost and its like show.
    payload = {"source": "reviewclf", "kind": kind, "subject": subject, "body": body, "text": f"{subject}\n{body}"}
    return HttpNotifier(http_conn_id=connection.conn_id, json=payload, extra_options={"timeout": timeout})


CHANNELS: dict[str, Callable[[Any, str, str, str, float], BaseNotifier]] = {
    "smtp": _email,
    "slackwebhook": _slack_webhook,
    "slack": _slack,
    "telegram": _telegram,
    "http": _webhook,
}
