"""Lines as values of one PostgreSQL statement: the bytes as they are, and a list of where each line goes.

Four arrays would say the same, and take psycopg twice as long to write down as the database to keep.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from cra_middleware.trace.storage.rows import Row

INSERT: Final = "INSERT INTO cra_lines (session, place, sequence, event_type, line)"
ROWS: Final = (
    "(SELECT place, sequence, event_type, substr(%s::bytea, at, size) AS line FROM json_to_recordset(%s::json) "
    "AS line (place bigint, sequence bigint, event_type text, at integer, size integer)) AS rows"
)
"""What ``INSERT`` takes; its two values are those of ``row_values``."""


def row_values(rows: Sequence[Row]) -> tuple[bytes, str]:
    """The values of ``ROWS``."""
    at, places = 1, list[dict[str, object]]()
    for row in rows:
        size = len(row.line)
        places.append(
            {"place": row.place, "sequence": row.sequence, "event_type": row.event_type, "at": at, "size": size}
        )
        at += size
    return b"".join(row.line for row in rows), json.dumps(places)
