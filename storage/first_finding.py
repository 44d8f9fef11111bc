"""A result's first finding: the one that its probability and its being positive are taken from."""

from typing import Any

from sqlalchemy import FromClause, Select, func, select

from storage.models import codes, findings, results


def with_first_finding(query: Select[Any], joined: FromClause) -> Select[Any]:
    """A query over `joined`, which holds results, that also sees each result's first finding, and its interpretation
    as a row of `codes`; null for a result without findings.
    """
    first = select(func.min(findings.c.id)).where(findings.c.result_id == results.c.id).correlate(results)
    return query.select_from(
        joined.outerjoin(findings, findings.c.id == first.scalar_subquery()).outerjoin(
            codes, codes.c.id == findings.c.interpretation_id
        )
    )
