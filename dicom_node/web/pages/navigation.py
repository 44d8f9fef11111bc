"""Entries of the navigation. Each page module that has one says so: `NAVIGATION = Entry("Peers", "/peers")`."""

from dataclasses import dataclass

from dicom_node.web.security.roles import Role


@dataclass(frozen=True)
class Entry:
    """One entry; shown to users who have the role."""

    title: str
    path: str
    role: Role = Role.VIEWER
