"""Objects to the bytes of JSON. A model may have written half a surrogate pair: it becomes "?", not an error."""

import json
from typing import Any

from fastapi.responses import JSONResponse


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(errors="replace")


class Answer(JSONResponse):
    def render(self, content: Any) -> bytes:
        return encoded(content)
