//! Counts log messages by level, so that an alert can ask whether errors are being written.

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::CounterHandle;
use super::catalogue::LOG_MESSAGES;

/// A layer for the subscriber that counts every event that is written.
pub struct CountMessages {
    error: CounterHandle,
    warn: CounterHandle,
    info: CounterHandle,
    debug: CounterHandle,
    trace: CounterHandle,
}

impl CountMessages {
    /// A layer that counts into the installed recorder.
    pub fn new() -> Self {
        CountMessages {
            error: LOG_MESSAGES.of(["error"]),
            warn: LOG_MESSAGES.of(["warn"]),
            info: LOG_MESSAGES.of(["info"]),
            debug: LOG_MESSAGES.of(["debug"]),
            trace: LOG_MESSAGES.of(["trace"]),
        }
    }
}

impl Default for CountMessages {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Subscriber> Layer<S> for CountMessages {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let counter = match *event.metadata().level() {
            Level::ERROR => &self.error,
            Level::WARN => &self.warn,
            Level::INFO => &self.info,
            Level::DEBUG => &self.debug,
            Level::TRACE => &self.trace,
        };
        counter.increment(1);
    }
}
