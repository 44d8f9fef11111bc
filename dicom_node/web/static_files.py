"""Style, scripts and pictures: the same for everybody, kept by browsers."""

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from dicom_node.web.pages.render import STATIC

KEPT = "public, max-age=31536000, immutable"


class CachedFiles(StaticFiles):
    """The files under static/, at addresses that change with their content (`static_url`)."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file; without its version in the address, it is not kept."""
        response = await super().get_response(path, scope)
        if response.status_code == 200 and scope.get("query_string", b"").startswith(b"v="):
            response.headers["Cache-Control"] = KEPT
        return response
