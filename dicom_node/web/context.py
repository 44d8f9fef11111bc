"""What the pages share: settings, index, stored files, the key of their cookies."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request

from config.settings import Settings
from dicom_node.web.security.keys import Keys
from dicom_node.web.security.passwords import Passwords
from dicom_node.web.security.throttle import LoginThrottle
from storage.database import Database
from storage.files import FileStore

if TYPE_CHECKING:
    from dicom_node.web.security.provider import Provider  # needs the extra sso


@dataclass(frozen=True)
class WebContext:
    """One for each web process; `request.app.state.web`, or `context_of(request)`.

    database: of this process alone, and quick to give up: a page may wait for the index, a slice never for a page.
    config_file: what the node was configured by, if anything. provider: the hospital's logins, if [web.oidc] names one.
    """

    settings: Settings
    database: Database
    files: FileStore
    keys: Keys
    config_file: Path | None = None
    passwords: Passwords = field(default_factory=Passwords)
    throttle: LoginThrottle = field(default_factory=LoginThrottle)
    provider: "Provider | None" = None


def context_of(request: Request) -> WebContext:
    """The context of the application that answers this request."""
    found: WebContext = request.app.state.web
    return found
