"""The comparison of the stores with the topic, over the settings' servers."""

from datetime import UTC, datetime, timedelta

from c360_pipeline.connections import open_control, open_graph, open_lake
from c360_pipeline.settings import Settings
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.streaming.agreement import Agreement, Stores
from c360_pipeline.streaming.clients import open_user_events
from c360_pipeline.streaming.topic import TopicReader
from c360_pipeline.streaming.topic_sources import sources_of_topics


def compared(settings: Settings, hours: float | None, landing: timedelta, *, repair: bool = False) -> Agreement:
    """Read the topic and compare.

    Args:
        settings: of all servers.
        hours: messages that are not older; all that Kafka has where it is None.
        landing: how old a message may be that has not landed.
        repair: whether to write what the graph lacks, and what Cassandra lacks or holds otherwise.

    Returns:
        What was found, after the repair where there was one.

    Raises:
        UnavailableError: a server does not answer.
    """
    at = datetime.now(UTC)
    sources, _ = sources_of_topics(settings)
    reading = TopicReader(settings, sources).sent(None if hours is None else at - timedelta(hours=hours), at)
    with (
        open_graph(settings) as graph, open_user_events(settings) as table,
        scratch_folder() as folder,
    ):  # fmt: skip
        suppressed = open_control(settings).privacy.suppressed_users()
        stores = Stores(open_lake(settings), graph, table, suppressed, sources)
        return stores.compare(reading, at, landing, folder, repair=repair)
