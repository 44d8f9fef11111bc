"""How this process may connect to the cluster: by environment variables, which Ray reads and its children inherit."""

import os
from pathlib import Path

from config.cluster import ClusterSettings
from dicom_node.errors import NodeError
from storage.private import OTHERS

SHORTEST_TOKEN = 16


def prepare(cluster: ClusterSettings) -> None:
    """Put them into the environment. Only before Ray is imported: it reads them once.

    Raises NodeError if the token's file cannot be used.
    """
    os.environ.update(variables(cluster))


def variables(cluster: ClusterSettings) -> dict[str, str]:
    """What Ray must find in the environment: the path of the token's file, never the token.

    Raises NodeError if the file cannot be used.
    """
    found = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_gcs_server_port_wait_time_s": "1"}
    if cluster.credentials is not None:
        _check_token(cluster.credentials)
        found |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.credentials)}
    if cluster.tls_certificate is not None:
        found |= {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": str(cluster.tls_certificate),
            "RAY_TLS_SERVER_KEY": str(cluster.tls_key),
            "RAY_TLS_CA_CERT": str(cluster.tls_authorities),
        }
    return found


def _check_token(path: Path) -> None:
    try:
        status, token = path.stat(), path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NodeError(f"[cluster] credentials: {path} cannot be read: {type(error).__name__}") from None
    if status.st_mode & OTHERS or status.st_uid != os.geteuid():
        raise NodeError(f"[cluster] credentials: {path} must belong to the node's user alone: chmod 600 {path}")
    if len(token) < SHORTEST_TOKEN:
        raise NodeError(f"[cluster] credentials: a token has {SHORTEST_TOKEN} characters or more: openssl rand -hex 32")
