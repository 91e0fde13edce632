"""Every metric of the platform: name, meaning and labels in one place."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

INGEST_READINGS = Counter(
    "meterpost_ingest_readings",
    "Readings stored, repeats and outranked versions included.",
    registry=REGISTRY,
)
INGEST_REFUSED = Counter("meterpost_ingest_refused", "Readings refused.", labelnames=("reason",), registry=REGISTRY)
INGEST_REFUSED_SHARE = Gauge(
    "meterpost_ingest_refused_share",
    "Share of the refused among a topic's recent readings, 0 to 1, over the partitions of this process.",
    labelnames=("topic",),
    registry=REGISTRY,
)
INGEST_REFUSAL_STOPS = Counter(
    "meterpost_ingest_refusal_stops",
    "Batches that were not stored, because nearly everything of the topic was refused; the process ends then.",
    labelnames=("topic",),
    registry=REGISTRY,
)
INGEST_BATCH_SECONDS = Histogram(
    "meterpost_ingest_batch_seconds",
    "From the poll's end to the commit of its batch.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
INGEST_SUPERSEDED = Counter(
    "meterpost_ingest_superseded",
    "Batches dropped because another process owns a partition.",
    registry=REGISTRY,
)
INGEST_MERGED_BATCHES = Counter(
    "meterpost_ingest_merged_batches",
    "Batches that were merged as a whole, because a reading that was taken for new was stored already.",
    registry=REGISTRY,
)
INGEST_DAYS_DROPPED = Counter(
    "meterpost_ingest_days_dropped", "Days of readings dropped by retention.", registry=REGISTRY
)
INGEST_REJECTED_DROPPED = Counter(
    "meterpost_ingest_rejected_dropped", "Refused readings dropped by retention.", registry=REGISTRY
)
INGEST_TICKS = Counter("meterpost_ingest_ticks", "Ticks appended to idle partitions.", registry=REGISTRY)
INGEST_WATERMARK = Gauge(
    "meterpost_ingest_watermark_seconds",
    "Watermark of a partition, as seconds since the epoch.",
    labelnames=("topic", "partition"),
    registry=REGISTRY,
)
_PARTITION = ("topic", "partition")
INGEST_POSITION = Gauge(
    "meterpost_ingest_position", "Next offset to store of a partition.", labelnames=_PARTITION, registry=REGISTRY
)
INGEST_END = Gauge(
    "meterpost_ingest_end_offset", "Where the log of a partition ends.", labelnames=_PARTITION, registry=REGISTRY
)
INGEST_LAG_RECORDS = Gauge(
    "meterpost_ingest_lag_records",
    "Records between the next offset to store and the log's end.",
    labelnames=_PARTITION,
    registry=REGISTRY,
)
INGEST_LAG_SECONDS = Gauge(
    "meterpost_ingest_lag_seconds",
    "How much later the log's newest record arrived than the last one stored; 0 where everything is stored.",
    labelnames=_PARTITION,
    registry=REGISTRY,
)
INGEST_EPOCH = Gauge(
    "meterpost_ingest_epoch",
    "Number of the present ownership of a partition.",
    labelnames=_PARTITION,
    registry=REGISTRY,
)
INGEST_OWNER = Gauge(
    "meterpost_ingest_owner",
    "1 for each partition that this process owns, with its name.",
    labelnames=(*_PARTITION, "owner"),
    registry=REGISTRY,
)
INGEST_GAP_RECORDS = Gauge(
    "meterpost_ingest_gap_records",
    "Records that the broker removed before they were read: open (ingest waits for an operator) or accepted.",
    labelnames=(*_PARTITION, "state"),
    registry=REGISTRY,
)
SERVER_WAITS = Counter(
    "meterpost_server_waits",
    "Times a service waited for a server that was away.",
    labelnames=("server",),
    registry=REGISTRY,
)
WINDOWS_CLOSED = Counter(
    "meterpost_windows_closed",
    "Windows of a bucket closed with rows.",
    labelnames=("resolution",),
    registry=REGISTRY,
)
WINDOWS_OCCUPIED = Counter(
    "meterpost_windows_occupied",
    "Attempts to close an open window that holds already what closing it is to write; its bucket closes no further.",
    labelnames=("resolution",),
    registry=REGISTRY,
)
WINDOWS_FORCED = Counter(
    "meterpost_windows_forced",
    "Windows of a bucket closed by an operator's decision, before everything was stored that belongs to them.",
    labelnames=("resolution",),
    registry=REGISTRY,
)
WINDOWS_HELD = Gauge(
    "meterpost_windows_held",
    "One-minute windows that this partition holds open and that the partition that is furthest would close; "
    "+Inf: nothing was ever heard of the partition.",
    labelnames=("topic", "partition"),
    registry=REGISTRY,
)
INGEST_LATE_READINGS = Counter(
    "meterpost_ingest_late_readings",
    "Versions stored that arrived after the cut-off of their window of this resolution, repeats included.",
    labelnames=("resolution",),
    registry=REGISTRY,
)
MEASUREMENT_PARTITIONS_DROPPED = Counter(
    "meterpost_measurement_partitions_dropped",
    "Partitions of closed windows dropped by retention.",
    labelnames=("resolution",),
    registry=REGISTRY,
)
MEASUREMENT_PARTITIONS_HELD = Gauge(
    "meterpost_measurement_partitions_held",
    "Partitions of closed windows that retention would drop if no job needed them for runs that are not delivered.",
    labelnames=("resolution",),
    registry=REGISTRY,
)
WINDOW_ROWS = Counter("meterpost_window_rows", "Measurements written.", registry=REGISTRY)
WINDOW_CLOSE_SECONDS = Histogram(
    "meterpost_window_close_seconds",
    "Duration of one closing statement.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
DELIVERY_RUNS = Counter(
    "meterpost_delivery_runs", "Runs by the state they ended in.", labelnames=("state",), registry=REGISTRY
)
DELIVERY_ATTEMPTS = Counter(
    "meterpost_delivery_attempts",
    "Attempts to deliver a part.",
    labelnames=("outcome", "reason"),
    registry=REGISTRY,
)
NOTIFICATIONS = Counter(
    "meterpost_notifications",
    "Attempts to tell an organization of a job's state.",
    labelnames=("channel", "outcome"),
    registry=REGISTRY,
)
DELIVERY_ROWS = Counter("meterpost_delivery_rows", "Rows delivered.", registry=REGISTRY)
DELIVERY_SECONDS = Histogram(
    "meterpost_delivery_seconds",
    "Duration of one attempt.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
DROPBOX_CONNECTIONS = Gauge(
    "meterpost_dropbox_connections",
    "Connections to the hosted folder.",
    labelnames=("state",),
    registry=REGISTRY,
)
DROPBOX_LOGINS = Counter(
    "meterpost_dropbox_logins",
    "Logins to the hosted folder, by who and how they ended.",
    labelnames=("role", "result"),
    registry=REGISTRY,
)
DROPBOX_TURNED_AWAY = Counter(
    "meterpost_dropbox_turned_away",
    "Connections to the hosted folder that a limit ended.",
    labelnames=("limit",),
    registry=REGISTRY,
)
DROPBOX_REFUSED = Counter(
    "meterpost_dropbox_refused",
    "Requests of sessions that are not allowed, or not possible.",
    labelnames=("role", "request"),
    registry=REGISTRY,
)
DROPBOX_DEPOSITED = Counter("meterpost_dropbox_deposited", "Files left in hosted folders.", registry=REGISTRY)
DROPBOX_FETCHED = Counter(
    "meterpost_dropbox_fetched", "Files that customers read to their end in hosted folders.", registry=REGISTRY
)
DROPBOX_REMOVED = Counter(
    "meterpost_dropbox_removed", "Files removed from hosted folders.", labelnames=("by",), registry=REGISTRY
)
DROPBOX_BYTES = Counter(
    "meterpost_dropbox_bytes", "Bytes of files written to and read from it.", labelnames=("way",), registry=REGISTRY
)
DROPBOX_STORED = Gauge(
    "meterpost_dropbox_stored_bytes", "Bytes that all files in hosted folders take.", registry=REGISTRY
)
DROPBOX_STORED_FILES = Gauge("meterpost_dropbox_stored_files", "Files in all hosted folders.", registry=REGISTRY)
DROPBOX_RECORDS_LOST = Counter(
    "meterpost_dropbox_records_lost",
    "Records that were not kept because the database was away for too long; the log has them.",
    registry=REGISTRY,
)
API_REQUESTS = Counter(
    "meterpost_api_requests",
    "Requests answered by the HTTP API, by operation (`none`: there is nothing at that address).",
    labelnames=("operation", "status"),
    registry=REGISTRY,
)
API_SECONDS = Histogram(
    "meterpost_api_seconds",
    "From a request's head to its answer.",
    labelnames=("operation",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
EXPORTS = Counter("meterpost_exports", "Manual exports that are over.", labelnames=("outcome",), registry=REGISTRY)
EXPORT_ROWS = Counter(
    "meterpost_export_rows", "Rows of manual exports that were put into the store.", registry=REGISTRY
)
EXPORT_CHUNK_SECONDS = Histogram(
    "meterpost_export_chunk_seconds",
    "Duration of one transaction that makes chunks of a manual export, to its commit.",
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
EXPORT_FILES_REMOVED = Counter(
    "meterpost_export_files_removed", "Manual exports whose files were removed after their time.", registry=REGISTRY
)
