"""Who may do what. An account has one or several roles."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """viewer: sees every page but the audit trail. The next three may do that too, and each one thing more.

    reader: gives verdicts. operator: retries, sends again, pauses, asks peers, acknowledges alarms. auditor: reads the
    audit trail and asks the index. administrator: everything, and the accounts.
    """

    VIEWER = "viewer"
    READER = "reader"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ADMINISTRATOR = "administrator"


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class User:
    """Somebody who is logged in. token: of this login; it never leaves the server but in the cookie."""

    user_id: int
    name: str
    roles: frozenset[Role]
    token: str

    def may(self, role: Role | str) -> bool:
        """Whether the user may do what needs this role."""
        return bool(self.roles & {Role.ADMINISTRATOR, Role(role)}) or (role == Role.VIEWER and bool(self.roles))


def roles_of(names: Iterable[str]) -> frozenset[Role]:
    """The roles of these names; unknown ones, of a later version perhaps, give no rights."""
    known = {str(role) for role in Role}
    return frozenset(Role(name) for name in names if name in known)
