//! The catalogue: every metric there is. What is not here cannot be emitted.
//!
//! Labels come from the topology, never from the data, so the number of series is known before the job starts. The one
//! exception is `slice` (values of the columns that an outcome is cut by), which is capped at [`SLICES_MAX`].

use super::{Counter, Gauge, Histogram, Metric, MetricKind, Part, Seen, Unit};

/// Most values of a column that an outcome is cut by which are slices of their own; the others are one slice together.
pub const SLICES_MAX: usize = 100;

/// Buckets of times that reach a disk, a broker or a person: 1 ms to 60 s.
pub const LATENCY: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];
/// Buckets of times inside the process: 1 us to 10 s.
pub const IN_PROCESS: &[f64] = &[
    0.000001, 0.000002, 0.000005, 0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02,
    0.05, 0.1, 0.2, 0.5, 1.0, 10.0,
];
/// Buckets of batch sizes in rows.
pub const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0];

/// Declares the constants and, from the same lines, [`CATALOGUE`]. A macro, because a constant that is missing in a
/// list written by hand would be a metric that nobody describes or checks.
macro_rules! catalogue {
    ($($kind:ident $(($buckets:ident))? $id:ident = $name:literal [$($label:literal),*] $unit:ident $part:ident $seen:ident $help:literal;)+) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help)]
            pub const $id: $kind<{ <[&str]>::len(&[$($label),*]) }> = $kind(Metric {
                name: $name,
                kind: MetricKind::$kind $(($buckets))?,
                labels: &[$($label),*],
                unit: Unit::$unit,
                part: Part::$part,
                seen: Seen::$seen,
                help: $help,
            });
        )+
        /// Every metric, in the order of the reference page.
        pub const CATALOGUE: &[Metric] = &[$($id.0),+];
    };
}

catalogue! {
    // The job.
    Gauge BUILD_INFO = "millstream_build_info" ["version"] Info Job FromStart "The build that runs.";
    Gauge JOB_INFO = "millstream_job_info" ["job", "config_hash"] Info Job FromStart "The job that runs and the hash of its topology.";
    Gauge UP_SINCE = "millstream_up_since_timestamp_seconds" [] Timestamp Job FromStart "When this start of the job began to process.";
    Gauge RESTARTS = "millstream_restarts" [] Count Job FromStart "How often the supervisor has started the job again since it was started itself; 0 without `--processes`.";
    Gauge EPOCH_CURRENT = "millstream_epoch_current" [] Count Job FromStart "The open epoch.";
    Gauge EPOCH_COMMITTED = "millstream_epoch_committed" [] Count Job FromStart "The newest epoch of which every output is durable.";
    Gauge EPOCH_AGE_SECONDS = "millstream_epoch_age_seconds" [] Seconds Job FromStart "Time since the newest commit of an epoch, by the process's clock at the scrape. The figure to alert on: above three epoch lengths the job does not keep up or is stuck.";
    Histogram(LATENCY) EPOCH_CLOSE_DURATION = "millstream_epoch_close_duration_seconds" [] Seconds Job OnceItHappens "Time from the end of an epoch until all of it is durable in every sink, to 20 ms.";
    Gauge GATE_SHUT = "millstream_gate_shut" ["gate"] Count Job FromStart "1 while this gate holds the sources: `sink` (a sink with a queue), `exchange` (rows between workers), `slow_lane` and `epoch` (epochs behind), `checkpoint` (the storage refuses), `offline` (bytes that wait for tables), `memory` (more than `engine.memory`) or `process` (another process of the job holds its own). It names the part that does not keep up.";
    Gauge MEMORY_BUDGET = "millstream_memory_budget_bytes" [] Bytes Job FromStart "Resident memory above which the sources wait (`engine.memory`), to hold `process_resident_memory_bytes` against.";
    Gauge EXCHANGE_QUEUED_ROWS = "millstream_exchange_queued_rows" [] Count Job FromStart "Rows on their way from one worker to another.";
    Gauge EXCHANGE_ROWS_MAX = "millstream_exchange_rows_max" [] Count Job FromStart "Rows between workers above which the sources are held.";
    Histogram(LATENCY) EPOCH_GATHER_DURATION = "millstream_epoch_gather_duration_seconds" [] Seconds Job OnceItHappens "Time from the end of an epoch until everything of it is gathered and its checkpoint begins: workers close it, the checkpoint before is written. Of live runs.";
    Counter CHECKPOINTS = "millstream_checkpoints_total" ["outcome"] Count Job OnceItHappens "Checkpoints tried, by outcome: ok or failed.";
    Histogram(LATENCY) CHECKPOINT_DURATION = "millstream_checkpoint_duration_seconds" [] Seconds Job OnceItHappens "Time to write a checkpoint durably, segment and manifest.";
    Counter CHECKPOINT_BYTES = "millstream_checkpoint_bytes_total" [] Bytes Job OnceItHappens "Bytes written for checkpoints: what changed, outputs on their way to Kafka and tables, manifests.";
    Gauge CHECKPOINT_EPOCH = "millstream_checkpoint_epoch" [] Count Job OnceItHappens "The epoch of the newest checkpoint of this run.";
    Gauge CHECKPOINT_LAST = "millstream_checkpoint_last_success_timestamp_seconds" [] Timestamp Job OnceItHappens "When the newest checkpoint of this run was written. An idle job writes none.";
    Counter LOG_MESSAGES = "millstream_log_messages_total" ["level"] Count Job FromStart "Log messages written, by level.";

    // Workers.
    Counter WORKER_STEPS = "millstream_worker_steps_total" ["worker"] Count Workers FromStart "Turns of the worker's loop.";
    Counter WORKER_PARKS = "millstream_worker_parks_total" ["worker"] Count Workers FromStart "Turns without a row in which the worker was free to sleep.";
    Gauge WORKER_BUSY_SECONDS = "millstream_worker_busy_seconds" ["worker"] Seconds Workers FromStart "Time in turns that moved rows, since the start. `rate` of it is how busy the worker is; near 1 it is the bottleneck.";
    Gauge WORKER_IDLE_SECONDS = "millstream_worker_idle_seconds" ["worker"] Seconds Workers FromStart "Time in turns without a row, since the start: spinning, parked, looking at sinks.";

    // Sources.
    Counter SOURCE_RECORDS = "millstream_source_records_total" ["source", "topic"] Count Sources FromStart "Records read. The topic of a file source is its path or pattern in the topology.";
    Counter SOURCE_BYTES = "millstream_source_bytes_total" ["source", "topic"] Bytes Sources FromStart "Bytes of the payloads read.";
    Gauge INBOX_QUEUED_BATCHES = "millstream_inbox_queued_batches" ["source", "worker"] Count Sources FromStart "Batches that wait in a worker's inbox. A full inbox makes the source wait.";
    Gauge INBOX_BATCHES_MAX = "millstream_inbox_batches_max" ["source"] Count Sources FromStart "Batches that an inbox holds.";
    Counter LATE_RECORDS = "millstream_late_records_total" ["source", "action"] Count Sources FromStart "Events later than the allowed lateness, by what was done: kept, dropped or dead_lettered.";
    Gauge WATERMARK_TIMESTAMP = "millstream_watermark_timestamp_seconds" ["source"] Timestamp Sources OnceItHappens "Event time behind which no more events are expected; the least over all workers.";
    Gauge WATERMARK_LAG_SECONDS = "millstream_watermark_lag_seconds" ["source"] Seconds Sources OnceItHappens "How far the watermark is behind the process's clock. In a replay, the age of the data.";

    // Kafka.
    Gauge SOURCE_POSITION = "millstream_source_position" ["source", "topic", "partition"] Count Kafka OnceItHappens "Offset of the next record to read.";
    Counter SOURCE_GAPS = "millstream_source_gaps_total" ["source", "topic"] Count Kafka OnceItHappens "Partitions of which a start has missed records that were gone (`--allow-gap`).";
    Counter SOURCE_MISSED_OFFSETS = "millstream_source_missed_offsets_total" ["source", "topic"] Count Kafka OnceItHappens "Offsets missed in these gaps, as far as they are known: those of a topic that was made anew are not.";
    Gauge SOURCE_PARTITIONS_ASSIGNED = "millstream_source_partitions_assigned" ["source"] Count Kafka OnceItHappens "Partitions that this process reads.";
    Gauge SOURCE_PAUSED = "millstream_source_paused" ["source"] Count Kafka OnceItHappens "1 while the source waits because the workers do not keep up.";
    Gauge SOURCE_LAST_RECORD = "millstream_source_last_record_timestamp_seconds" ["source", "topic", "partition"] Timestamp Kafka OnceItHappens "When the newest record of the partition was read.";
    Gauge SOURCE_LAG_RECORDS = "millstream_source_lag_records" ["source", "topic", "partition"] Count Kafka OnceItHappens "Records between the position and the end of the partition.";
    Gauge SOURCE_LAG_SECONDS = "millstream_source_lag_seconds" ["source", "topic", "partition"] Seconds Kafka OnceItHappens "Age of the newest record read while there are records unread; 0 when all are read.";
    Gauge SOURCE_COMMITTED_OFFSET = "millstream_source_committed_offset" ["source", "topic", "partition"] Count Kafka OnceItHappens "Offset committed to the consumer group, for lag tools; the job itself goes on from its checkpoint.";
    Gauge SOURCE_IDLE_SECONDS = "millstream_source_idle_seconds" ["source", "topic", "partition"] Seconds Kafka OnceItHappens "Time since the newest record of a partition that is read to its end.";

    Gauge KAFKA_BROKERS_UP = "millstream_kafka_brokers_up" ["client"] Count Kafka OnceItHappens "Brokers that a client is connected to, every 5 s. A client connects only to brokers it needs; 0 is an outage.";
    Counter KAFKA_CLIENT_ERRORS = "millstream_kafka_client_errors_total" ["client", "code"] Count Kafka OnceItHappens "Errors that a client met, by librdkafka's code: connections lost, requests refused. Most mend themselves.";
    Counter KAFKA_COMMIT_ERRORS = "millstream_kafka_commit_errors_total" ["client"] Count Kafka OnceItHappens "Offsets for lag tools that could not be committed. The job itself does not need them.";

    // Operators.
    Counter OPERATOR_RECORDS_IN = "millstream_operator_records_in_total" ["operator"] Count Operators FromStart "Records an operator took. Conservation: in = out + rejected + dropped, for operators that answer each record.";
    Counter OPERATOR_RECORDS_OUT = "millstream_operator_records_out_total" ["operator"] Count Operators FromStart "Records an operator gave.";
    Counter DLQ_RECORDS = "millstream_dlq_records_total" ["stage", "reason"] Count Operators OnceItHappens "Records rejected, by the node where they failed and why.";
    Counter RECORDS_DROPPED = "millstream_records_dropped_total" ["operator", "reason"] Count Operators OnceItHappens "Records dropped on purpose, by reason: filtered, late or duplicate.";
    Gauge STATE_KEYS = "millstream_state_keys" ["operator"] Count Operators OnceItHappens "Keys an operator remembers, over all workers.";
    Gauge STATE_BYTES = "millstream_state_bytes" ["operator"] Bytes Operators OnceItHappens "Approximate memory of what an operator remembers, over all workers.";

    // The online store.
    Counter ONLINE_STORE_ROWS = "millstream_online_store_rows_total" ["feature_set"] Count OnlineStore FromStart "Feature rows published.";
    Counter ONLINE_STORE_OLD_ROWS = "millstream_online_store_old_rows_total" ["feature_set"] Count OnlineStore FromStart "Feature rows published that were older than every version kept, and so changed nothing.";
    Counter ONLINE_STORE_EXPIRED = "millstream_online_store_expired_keys_total" ["feature_set"] Count OnlineStore FromStart "Keys removed because their newest row was older than the group's ttl.";
    Gauge ONLINE_STORE_KEYS = "millstream_online_store_keys" ["feature_set"] Count OnlineStore FromStart "Keys in the store.";
    Gauge ONLINE_STORE_BYTES = "millstream_online_store_bytes" ["feature_set"] Bytes OnlineStore FromStart "Approximate memory of the store.";
    Histogram(IN_PROCESS) ONLINE_STORE_OP_DURATION = "millstream_online_store_op_duration_seconds" ["op"] Seconds OnlineStore OnceItHappens "Time of an operation, by kind: publish (a batch), read (a request), sweep.";
    Counter ONLINE_STORE_ERRORS = "millstream_online_store_errors_total" ["op", "kind"] Count OnlineStore OnceItHappens "Operations that gave nothing, by kind: unknown_group, unknown_key, columns.";
    Gauge FEATURE_STALENESS_SECONDS = "millstream_feature_staleness_seconds" ["feature_set"] Seconds OnlineStore OnceItHappens "Process's clock minus the newest event time in the store. In a replay, the age of the data.";

    // Models.
    Gauge MODEL_INFO = "millstream_model_info" ["model", "version", "digest"] Info Models FromStart "A loaded model, its version and the first 8 digits of the SHA-256 of its file.";
    Gauge MODEL_LOADED = "millstream_model_loaded_timestamp_seconds" ["model", "version"] Timestamp Models FromStart "When the model was loaded and tried.";
    Histogram(IN_PROCESS) MODEL_INFERENCE_DURATION = "millstream_model_inference_duration_seconds" ["model"] Seconds Models OnceItHappens "Time of a run of the model, a batch of rows each.";
    Histogram(ROWS) MODEL_BATCH_ROWS = "millstream_model_batch_rows" ["model"] Count Models OnceItHappens "Rows in a run of the model.";
    Counter MODEL_PREDICTIONS = "millstream_model_predictions_total" ["model", "version"] Count Models FromStart "Predictions made.";

    // Drift.
    Gauge DRIFT_SCORE = "millstream_drift_score" ["operator", "detector"] Number Drift OnceItHappens "The detector's statistic; what it is compared with depends on the detector.";
    Counter DRIFT_ALERTS = "millstream_drift_alerts_total" ["operator", "detector", "level"] Count Drift FromStart "Drift signals, by level: warning or drift.";
    Counter DRIFT_VALUES = "millstream_drift_values_total" ["operator", "detector"] Count Drift FromStart "Values a detector was shown.";
    Counter DRIFT_SKIPPED = "millstream_drift_skipped_values_total" ["operator", "detector"] Count Drift FromStart "Values a detector could not use: null, NaN, or infinite where it takes no infinity.";
    Gauge DRIFT_WINDOW_SAMPLES = "millstream_drift_window_samples" ["operator", "detector"] Count Drift OnceItHappens "Values in the detector's window.";

    // Outcomes.
    Gauge OUTCOME_PREDICTIONS = "millstream_outcome_predictions" ["outcomes"] Count Outcomes FromStart "Predictions in the window, with and without a label.";
    Gauge OUTCOME_PENDING = "millstream_outcome_pending" ["outcomes"] Count Outcomes FromStart "Predictions in the window that wait for their label.";
    Gauge OUTCOME_UNMATCHED_LABELS = "millstream_outcome_unmatched_labels" ["outcomes"] Count Outcomes FromStart "Labels in the window without a prediction there: they came first, their key is wrong, or the prediction is older than the window.";
    Counter OUTCOME_LABELS = "millstream_outcome_labels_total" ["outcomes", "effect"] Count Outcomes OnceItHappens "Labels, by what they did: new, correction (another value than before), repeat, withdrawal (null), stale (there is a later one) or skipped (no key).";
    Counter OUTCOME_SKIPPED = "millstream_outcome_skipped_predictions_total" ["outcomes", "reason"] Count Outcomes OnceItHappens "Predictions that are not judged, by reason: score (null, NaN, infinite) or key (null).";
    Counter OUTCOME_EVICTED = "millstream_outcome_evicted_total" ["outcomes", "what"] Count Outcomes OnceItHappens "What left the window: labelled and unlabelled predictions, and labels (label). Many unlabelled ones mean that the window is shorter than labels take.";
    Gauge OUTCOME_JOINED = "millstream_outcome_joined" ["outcomes", "slice"] Count Outcomes OnceItHappens "Predictions in the window that have their label. A slice is column=value, `all` is everything; 0 when the window has left a slice behind.";
    Gauge OUTCOME_AUC = "millstream_outcome_auc" ["outcomes", "slice"] Number Outcomes OnceItHappens "Area under the ROC curve over the window; NaN while there is only one class, or none.";
    Gauge OUTCOME_LOG_LOSS = "millstream_outcome_log_loss" ["outcomes", "slice"] Number Outcomes OnceItHappens "Mean negative log likelihood over the window, in nats; NaN while there is nothing to judge.";
    Gauge OUTCOME_CALIBRATION_ERROR = "millstream_outcome_calibration_error" ["outcomes", "slice"] Number Outcomes OnceItHappens "Expected calibration error over the window: mean distance between score and observed share, weighted by bin; NaN while there is nothing to judge.";
    Gauge OUTCOME_POSITIVE_RATIO = "millstream_outcome_positive_ratio" ["outcomes", "slice"] Ratio Outcomes OnceItHappens "Share of positive labels in the window; NaN while there is none.";

    // Sinks.
    Counter SINK_RECORDS = "millstream_sink_records_total" ["sink"] Count Sinks FromStart "Records handed to the sink.";
    Counter SINK_BYTES = "millstream_sink_bytes_total" ["sink"] Bytes Sinks FromStart "Bytes of the records handed to the sink, keys and headers included.";
    Histogram(LATENCY) SINK_COMMIT_DURATION = "millstream_sink_commit_duration_seconds" ["sink", "step"] Seconds Sinks OnceItHappens "Time of each step of a transaction's end, of sinks with transactions: drain (the brokers acknowledge the records), decide (the wait for the checkpoint), mark (they take the marker) and commit.";
    Counter SINK_ERRORS = "millstream_sink_errors_total" ["sink", "kind"] Count Sinks OnceItHappens "Errors while writing, by kind: refused (by the broker) or disk.";
    Gauge SINK_QUEUED_RECORDS = "millstream_sink_queued_records" ["sink"] Count Sinks FromStart "Records that the sink's writers could not take yet. Above 0 the sources are held.";
    Histogram(IN_PROCESS) PROCESSING_LATENCY = "millstream_processing_latency_seconds" ["sink"] Seconds Sinks FromStart "Time from a record's arrival in the process to the sink's writer.";
    Gauge SINK_STALLED_SECONDS = "millstream_sink_stalled_seconds" ["sink"] Seconds Sinks FromStart "Time in which the sink could not take what it was given, since the start. Growth means that the world behind the sink is the bottleneck.";

    // The offline store.
    Counter OFFLINE_ROWS = "millstream_offline_rows_total" ["table"] Count OfflineStore FromStart "Rows committed.";
    Counter OFFLINE_FILES = "millstream_offline_files_total" ["table"] Count OfflineStore FromStart "Parquet files committed.";
    Counter OFFLINE_COMMITS = "millstream_offline_commits_total" ["table", "outcome"] Count OfflineStore FromStart "Commits, by outcome: committed, repeated (a redo that found its work done), or failed, which ends the job.";
    Counter OFFLINE_COMMIT_CONFLICTS = "millstream_offline_commit_conflicts_total" ["table"] Count OfflineStore FromStart "Commits that lost against another writer and were tried again.";
    Histogram(LATENCY) OFFLINE_COMMIT_DURATION = "millstream_offline_commit_duration_seconds" ["table"] Seconds OfflineStore OnceItHappens "Time to write the staged files of a commit and to commit them.";
    Gauge OFFLINE_LAST_COMMIT = "millstream_offline_last_commit_timestamp_seconds" ["table"] Timestamp OfflineStore OnceItHappens "When the newest commit was made.";
    Gauge OFFLINE_DURABLE_EPOCH = "millstream_offline_durable_epoch" ["table"] Count OfflineStore FromStart "The newest epoch whose rows are committed.";
    Gauge OFFLINE_BACKLOG_BYTES = "millstream_offline_backlog_bytes" [] Bytes OfflineStore FromStart "Memory of rows handed over and not yet committed, over all tables.";

    // HTTP.
    Counter HTTP_REQUESTS = "millstream_http_requests_total" ["route", "method", "code"] Count Http OnceItHappens "Requests answered, by route template.";
    Histogram(IN_PROCESS) HTTP_REQUEST_DURATION = "millstream_http_request_duration_seconds" ["route"] Seconds Http OnceItHappens "Time to answer a request.";

    // The process.
    Counter PROCESS_CPU_SECONDS = "process_cpu_seconds_total" [] Seconds Process FromStart "User and system CPU time.";
    Gauge PROCESS_RESIDENT_MEMORY_BYTES = "process_resident_memory_bytes" [] Bytes Process FromStart "Memory in RAM.";
    Gauge PROCESS_VIRTUAL_MEMORY_BYTES = "process_virtual_memory_bytes" [] Bytes Process FromStart "Address space.";
    Gauge PROCESS_START_TIME_SECONDS = "process_start_time_seconds" [] Timestamp Process FromStart "Start of the process.";
    Gauge PROCESS_OPEN_FDS = "process_open_fds" [] Count Process FromStart "Open file descriptors.";
    Gauge PROCESS_MAX_FDS = "process_max_fds" [] Count Process FromStart "Most file descriptors the process may open.";
    Gauge PROCESS_THREADS = "process_threads" [] Count Process FromStart "Threads.";
}
