"""The type of a Cypher statement."""


class Statement(str):
    """A Cypher statement: only these are run.

    Those that are constants stand at the top of a module, where tests find them by their type: each goes through
    `EXPLAIN` on a server, is looked at for scans, and names the tenant of every node that it matches. Those that are
    made from kinds are made in `stores.neo4j.cypher`.
    """

    __slots__ = ()
