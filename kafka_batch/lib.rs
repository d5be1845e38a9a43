//! What the rdkafka crate does not offer of librdkafka: messages in batches, straight from its queues, the end of a linger, and
//! the ids of topics. The one crate of Millstream with unsafe code.
//!
//! `BaseConsumer::poll` gives one message a call, through an event with two allocations, and does not say which
//! partition an error or an end belongs to. A [`Queue`] takes everything that waits with one call (0.24 instead of 0.43
//! microseconds a message) and says it. A consumer has as many queues as it likes, and each partition is handed to one of
//! them; so one client, with one connection to each broker, feeds any number of threads. Logs, errors of the
//! client and results of commits stay with `BaseConsumer::poll`, which some thread has to call now and then.
#![deny(missing_docs, unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, CString, c_void};
use std::ops::ControlFlow;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;

/// A partition that librdkafka does not accept: its topic has no legal name, or its number is negative.
#[derive(Debug, thiserror::Error)]
#[error("`{topic}`/{partition} can't be a Kafka partition")]
pub struct NotAPartition {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
}

/// Something that came from a partition.
#[derive(Debug, Clone, Copy)]
pub struct Fetched<'a> {
    /// Tells topics apart by a number that holds as long as the consumer lives: cheaper than a name for every message.
    pub topic: Topic<'a>,
    /// The partition.
    pub partition: i32,
    /// The message's offset; of an end, the offset that the next message will have.
    pub offset: i64,
    /// What came.
    pub what: What<'a>,
}

/// What came from a partition.
#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    /// A message.
    Message {
        /// Milliseconds since 1970; -1 if the message has none.
        timestamp: i64,
        /// The key; `None` if the message has none.
        key: Option<&'a [u8]>,
        /// The value; `None` is a tombstone.
        value: Option<&'a [u8]>,
    },
    /// Everything there is has been read, for now. Comes only with `enable.partition.eof`.
    End,
    /// The partition can't be read, for now or for good.
    Error {
        /// The kind of error.
        code: RDKafkaErrorCode,
        /// What librdkafka says about it.
        text: &'a str,
    },
}

/// The topic of something that was fetched.
#[derive(Debug, Clone, Copy)]
pub struct Topic<'a> {
    native: NonNull<sys::rd_kafka_topic_t>,
    message: std::marker::PhantomData<&'a ()>,
}

impl<'a> Topic<'a> {
    /// Differs between topics of one consumer, and stays the same for one topic.
    pub fn id(self) -> usize {
        self.native.as_ptr() as usize
    }
    /// The name.
    pub fn name(self) -> &'a str {
        // SAFETY: a fetched message holds its topic, and the name lives as long as the topic and ends with a zero.
        let name = unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(self.native.as_ptr())) };
        name.to_str().unwrap_or_default()
    }
}

/// A queue of messages of the partitions that were handed to it, for one thread.
pub struct Queue<C: ConsumerContext + 'static> {
    /// Messages taken from librdkafka: those from `next` to `filled` are not given yet and are ours to free.
    messages: Vec<*mut sys::rd_kafka_message_t>,
    next: usize,
    filled: usize,
    native: Arc<Native<C>>,
}

/// Where partitions are handed to a [`Queue`], from any thread.
pub struct Inlet<C: ConsumerContext + 'static>(Arc<Native<C>>);

/// The queue of librdkafka, and the consumer that must outlive it.
struct Native<C: ConsumerContext + 'static> {
    queue: NonNull<sys::rd_kafka_queue_t>,
    consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues may be used from any thread, also several at a time.
unsafe impl<C: ConsumerContext + 'static> Send for Native<C> {}
// SAFETY: as above.
unsafe impl<C: ConsumerContext + 'static> Sync for Native<C> {}
// SAFETY: the messages are the queue's alone, and librdkafka lets any thread read and free them.
unsafe impl<C: ConsumerContext + 'static> Send for Queue<C> {}

impl<C: ConsumerContext + 'static> Drop for Native<C> {
    fn drop(&mut self) {
        // SAFETY: this was the last use of the queue, and the consumer is still alive.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

impl<C: ConsumerContext + 'static> Inlet<C> {
    /// Has the messages of a partition come to the queue. To be called before the partition is assigned.
    ///
    /// # Errors
    /// If there can't be such a partition.
    pub fn hand_over(&self, topic: &str, partition: i32) -> Result<(), NotAPartition> {
        let refuse = || NotAPartition { topic: topic.into(), partition };
        let name = CString::new(topic).map_err(|_| refuse())?;
        let client = self.0.consumer.client().native_ptr();
        // SAFETY: the client is alive and the name ends with a zero; librdkafka copies it.
        let from = unsafe { sys::rd_kafka_queue_get_partition(client, name.as_ptr(), partition) };
        let from = NonNull::new(from).ok_or_else(refuse)?;
        // SAFETY: both queues are alive; forwarding takes references of its own, so ours to `from` is given back.
        unsafe {
            sys::rd_kafka_queue_forward(from.as_ptr(), self.0.queue.as_ptr());
            sys::rd_kafka_queue_destroy(from.as_ptr());
        }
        Ok(())
    }
}

impl<C: ConsumerContext + 'static> Queue<C> {
    /// A queue without partitions, that takes up to `batch_max` messages from librdkafka at once.
    pub fn new(consumer: Arc<BaseConsumer<C>>, batch_max: usize) -> Self {
        // SAFETY: the client is alive, the consumer holds it.
        let queue = unsafe { sys::rd_kafka_queue_new(consumer.client().native_ptr()) };
        let queue = NonNull::new(queue).expect("librdkafka makes a queue or ends the process when memory is out");
        let native = Arc::new(Native { queue, consumer });
        Queue { messages: vec![ptr::null_mut(); batch_max.max(1)], next: 0, filled: 0, native }
    }

    /// Where partitions are handed to this queue.
    pub fn inlet(&self) -> Inlet<C> {
        Inlet(self.native.clone())
    }

    /// Gives `take` what waits, in the order of each partition, until `take` breaks off or a whole batch was given; the
    /// rest waits for the next call. If nothing waits, it waits up to `wait` for something. Returns how many were given.
    pub fn read(&mut self, wait: Duration, mut take: impl FnMut(Fetched<'_>) -> ControlFlow<()>) -> usize {
        if self.next == self.filled {
            self.fill(wait);
        }
        let start = self.next;
        while self.next < self.filled {
            let message = Owned(self.messages[self.next]);
            self.next += 1;
            if message.fetched().is_some_and(|fetched| take(fetched).is_break()) {
                break;
            }
        }
        self.next - start
    }

    /// How many wait to be given, or somewhat more: what librdkafka throws away of them is counted as well.
    pub fn waiting(&self) -> usize {
        // SAFETY: the queue is alive.
        let in_queue = unsafe { sys::rd_kafka_queue_length(self.native.queue.as_ptr()) };
        self.filled - self.next + in_queue
    }

    /// Takes what waits. Asked with a timeout, librdkafka waits all of it unless the batch fills: so it is asked
    /// without, and if there is nothing, for one message with the timeout and then for what came with it.
    fn fill(&mut self, wait: Duration) {
        self.next = 0;
        self.filled = self.fetch(0, 0, self.messages.len());
        if self.filled == 0 && !wait.is_zero() && self.fetch(wait.as_millis().clamp(1, 60_000) as i32, 0, 1) == 1 {
            self.filled = 1 + self.fetch(0, 1, self.messages.len());
        }
    }

    fn fetch(&mut self, wait_ms: i32, from: usize, to: usize) -> usize {
        let room = &mut self.messages[from..to];
        // SAFETY: the queue is alive; librdkafka writes at most `room.len()` pointers, each to a message that is ours.
        let got = unsafe {
            sys::rd_kafka_consume_batch_queue(self.native.queue.as_ptr(), wait_ms, room.as_mut_ptr(), room.len())
        };
        usize::try_from(got).unwrap_or(0)
    }
}

impl<C: ConsumerContext + 'static> Drop for Queue<C> {
    fn drop(&mut self) {
        for message in &self.messages[self.next..self.filled] {
            drop(Owned(*message));
        }
    }
}

/// A message that is ours to free.
struct Owned(*mut sys::rd_kafka_message_t);

impl Owned {
    /// What the message says; `None` for an error of the whole client, which has no partition (`BaseConsumer::poll` gives
    /// those).
    fn fetched(&self) -> Option<Fetched<'_>> {
        // SAFETY: librdkafka gave the pointer, and the message lives until `self` is dropped.
        let message = unsafe { &*self.0 };
        let native = NonNull::new(message.rkt)?;
        let bytes = |data: *mut c_void, len: usize| {
            // SAFETY: librdkafka says that `len` bytes are at `data`; they live as long as the message.
            (!data.is_null()).then(|| unsafe { std::slice::from_raw_parts(data as *const u8, len) })
        };
        let what = match message.err {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => What::Message {
                // SAFETY: the message is alive; the kind of timestamp is not asked for.
                timestamp: unsafe { sys::rd_kafka_message_timestamp(self.0, ptr::null_mut()) },
                key: bytes(message.key, message.key_len),
                value: bytes(message.payload, message.len),
            },
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => What::End,
            code => What::Error {
                code: code.into(),
                text: bytes(message.payload, message.len).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default(),
            },
        };
        let topic = Topic { native, message: std::marker::PhantomData };
        Some(Fetched { topic, partition: message.partition, offset: message.offset, what })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the message is ours and is not used again.
        unsafe { sys::rd_kafka_message_destroy(self.0) };
    }
}

/// The oldest offset there is in a partition and the offset that the next message will have, as the last answer to a
/// fetch said; asks nobody. `None` before the first answer.
pub fn watermarks<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, partition: i32) -> Option<(i64, i64)> {
    let name = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive, the name ends with a zero, and the numbers live until the call returns.
    let answer = unsafe {
        let client = consumer.client().native_ptr();
        sys::rd_kafka_get_watermark_offsets(client, name.as_ptr(), partition, &mut low, &mut high)
    };
    let known = answer == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0;
    known.then_some((low.max(0), high))
}

/// The id that brokers gave a topic when it was made, as Kafka's tools show it: one that is made anew under the name has
/// another. `None` if they do not say it within `wait`: they are older than 2.8, or do not answer, or there is no such topic.
pub fn topic_id<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, wait: Duration) -> Option<String> {
    let name = CString::new(topic).ok()?;
    let wait_ms = wait.as_millis().clamp(1, 60_000) as i32;
    let client = consumer.client().native_ptr();
    // SAFETY: the client is alive. Options, names and queue are made here, are no null (librdkafka ends the process when memory
    // is out), and live until the calls that use them have returned; an answer that comes later finds the queue closed.
    let answer = unsafe {
        let options =
            sys::rd_kafka_AdminOptions_new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        // A time within the limits is not refused, and without one the default would do as well.
        sys::rd_kafka_AdminOptions_set_request_timeout(options, wait_ms, ptr::null_mut(), 0);
        let topics = sys::rd_kafka_TopicCollection_of_topic_names([name.as_ptr()].as_mut_ptr(), 1);
        let queue = sys::rd_kafka_queue_new(client);
        sys::rd_kafka_DescribeTopics(client, topics, options, queue);
        let answer = sys::rd_kafka_queue_poll(queue, wait_ms);
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_AdminOptions_destroy(options);
        answer
    };
    Answer(NonNull::new(answer)?).topic_id()
}

/// An answer to a request, ours to free.
struct Answer(NonNull<sys::rd_kafka_event_t>);

impl Answer {
    /// The id of the one topic that was asked for.
    fn topic_id(&self) -> Option<String> {
        let mut count = 0;
        // SAFETY: the event is alive; of another kind it has no such result, which is null.
        let topics = unsafe {
            let result = sys::rd_kafka_event_DescribeTopics_result(self.0.as_ptr());
            if result.is_null() || sys::rd_kafka_event_error(self.0.as_ptr()) != NO_ERROR {
                return None;
            }
            sys::rd_kafka_DescribeTopics_result_topics(result, &mut count)
        };
        if topics.is_null() || count == 0 {
            return None;
        }
        // SAFETY: there is a topic, whose description lives as long as the event, as does its id; an error may be null.
        let (id, text) = unsafe {
            let topic = *topics;
            if sys::rd_kafka_error_code(sys::rd_kafka_TopicDescription_error(topic)) != NO_ERROR {
                return None;
            }
            let id = sys::rd_kafka_TopicDescription_topic_id(topic);
            let bits = [sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id)];
            (bits, CStr::from_ptr(sys::rd_kafka_Uuid_base64str(id)))
        };
        // Brokers that know of no ids say 0.
        (id != [0, 0]).then(|| text.to_string_lossy().into_owned())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: the event is ours and is not used again.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

const NO_ERROR: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// Has a producer send what it has at once instead of lingering over it, and waits up to `wait`, at least a millisecond, until
/// the brokers have acknowledged it *and* another thread has taken the reports. Who has no other thread takes them afterwards.
///
/// `BaseProducer::flush` is another thing: it ends the linger for no time at all, then takes reports for as long as asked.
pub fn hurry<C: ProducerContext>(producer: &BaseProducer<C>, wait: Duration) {
    let wait_ms = wait.as_millis().clamp(1, 60_000) as i32;
    // SAFETY: the client is alive. Reports of this producer are events: librdkafka only waits, and calls nothing back.
    let _left = unsafe { sys::rd_kafka_flush(producer.client().native_ptr(), wait_ms) };
}
