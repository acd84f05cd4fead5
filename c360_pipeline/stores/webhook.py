"""Tells people what needs them: a webhook, and always the log."""

import requests
import structlog
from pydantic import SecretStr
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

ATTEMPTS = 4
SECONDS = 10.0
"""How long one attempt may take."""


class Notifier:
    """Sends notices.

    Args:
        webhook: where they are posted to as JSON, None for the log only; its address is a secret.
        dagster_url: of the UI, for links.
    """

    def __init__(self, webhook: SecretStr | None, dagster_url: str) -> None:
        self._webhook = webhook
        self._dagster_url = dagster_url.rstrip("/")
        self._log = structlog.get_logger("c360.notifier")

    def notify(self, subject: str, text: str, *, link: str, runbook: str) -> bool:
        """Send a notice; returns whether it was delivered, or there is nowhere to deliver it to.

        Args:
            subject: one line.
            text: what happened and what to do. `text` of what is posted holds both, as chat services want it.
            link: page of the UI, from its root.
            runbook: where it says what to do.
        """
        url = f"{self._dagster_url}/{link.lstrip('/')}"
        self._log.warning("notice", subject=subject, text=text, link=url, runbook=runbook)
        if self._webhook is None:
            return True
        body = {"subject": subject, "text": f"{subject}\n{text}\n{url}\n{runbook}", "link": url, "runbook": runbook}
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(requests.RequestException),
                stop=stop_after_attempt(ATTEMPTS),
                wait=wait_random_exponential(multiplier=0.2, max=2.0),
                reraise=True,
            ):
                with attempt:
                    requests.post(self._webhook.get_secret_value(), json=body, timeout=SECONDS).raise_for_status()
        except requests.RequestException as error:
            # The address may hold a token, and messages of requests hold the address.
            self._log.error("notice_not_delivered", subject=subject, error=type(error).__name__)
            return False
        return True
