//! What a Kafka sink delivers, and when it says so.

use std::collections::BTreeMap;

use millstream::sinks::kafka::{CUT_HEADER, Delivery, EVENT_TIME_HEADER, KafkaSink};
use millstream::sinks::{BatchBytes, Commits, Open, Records, SinkError, SinkTarget, SinkWriter};
use millstream_operators::units::Millis;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};

use super::*;

fn sink(brokers: &str, topic: &str, options: &[(&str, &str)]) -> KafkaSink {
    let options: BTreeMap<String, String> = options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let new = KafkaSink::new(brokers, topic);
    KafkaSink { delivery: Delivery::AtLeastOnce, linger: Millis(1), options: Options(options), ..new }
}

fn open(sink: &KafkaSink) -> Result<Box<dyn SinkWriter>, SinkError> {
    sink.open(opening("test".to_owned(), false))
}

/// What a writer of `job` is opened with.
fn opening(job: String, dead_letters: bool) -> Open {
    Open {
        name: "scores".to_owned(),
        job,
        worker: 0,
        workers: 1,
        folder: PathBuf::new(),
        dead_letters,
        resumed: false,
        position: None,
        commits: Commits::default(),
        batch_bytes: BatchBytes::default(),
    }
}

/// Numbered records with a key and two headers.
fn records(numbers: std::ops::Range<i64>) -> Records {
    let mut records = Records { header_names: vec!["epoch".into(), "prediction_id".into()], ..Records::default() };
    for n in numbers {
        records.values.extend(format!("{{\"n\":{n}}}").bytes());
        records.value_ends.push(records.values.len());
        records.keys.extend(format!("k{}", n % 7).bytes());
        records.key_ends.push(records.keys.len());
        for header in [b"3".to_vec(), format!("id-{n}").into_bytes()] {
            records.headers.extend(header);
            records.header_ends.push(records.headers.len());
        }
        records.event_times.push(1_000 + n);
    }
    records
}

/// Writes all of `records`, however often the writer takes only some.
fn write_all(writer: &mut dyn SinkWriter, epoch: u64, records: &Records) {
    let (mut from, deadline) = (0, Instant::now() + LONG);
    while from < records.len() {
        from = writer.write(epoch, records, from).unwrap();
        assert!(Instant::now() < deadline, "stuck at {from}");
    }
}

fn until_durable(writer: &mut dyn SinkWriter, epoch: u64) {
    let deadline = Instant::now() + LONG;
    while writer.durable().unwrap() != Some(epoch) {
        assert!(Instant::now() < deadline, "epoch {epoch} is not durable");
        std::thread::yield_now();
    }
}

/// Every message of a topic, given to `see`, until there were `count`.
fn read_back(brokers: &str, topic: &str, partitions: i32, count: usize, mut see: impl FnMut(BorrowedMessage<'_>)) {
    let consumer: BaseConsumer = client(brokers).set("group.id", "back").create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    for _ in 0..count {
        see(consumer.poll(LONG).expect("another message").unwrap());
    }
    assert!(consumer.poll(Duration::from_millis(300)).is_none(), "no message twice");
}

#[test]
fn everything_is_delivered_with_key_headers_and_event_time() {
    let (brokers, topic) = (brokers(), unique("sink"));
    create(&brokers, &topic, 3, &[]);
    let mut writer = open(&sink(&brokers, &topic, &[])).unwrap();
    assert_eq!(writer.durable().unwrap(), None);
    write_all(&mut *writer, 1, &records(0..500));
    writer.close_epoch(1).unwrap();
    write_all(&mut *writer, 2, &records(500..1_000));
    until_durable(&mut *writer, 1);
    writer.close_epoch(2).unwrap();
    writer.close_epoch(3).unwrap();
    until_durable(&mut *writer, 3);
    let mut last: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    read_back(&brokers, &topic, 3, 1_000, |message| {
        let value: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        let n = value["n"].as_i64().unwrap();
        let key = message.key().unwrap().to_vec();
        assert_eq!(key, format!("k{}", n % 7).into_bytes());
        let headers: BTreeMap<String, String> = message.headers().unwrap().iter().map(header).collect();
        assert_eq!(headers[EVENT_TIME_HEADER], (1_000 + n).to_string());
        assert_eq!((&*headers["epoch"], &*headers["prediction_id"]), ("3", &*format!("id-{n}")));
        let stamp = message.timestamp().to_millis().unwrap();
        assert!((now - stamp).abs() < 60_000, "the timestamp is when it was written");
        let before = last.insert(key, n);
        assert!(before.is_none_or(|before| before < n), "a key's records stay in order");
    });
}

fn header(header: rdkafka::message::Header<'_, &[u8]>) -> (String, String) {
    (header.key.to_owned(), String::from_utf8(header.value.unwrap().to_vec()).unwrap())
}

#[test]
fn nothing_is_durable_before_the_broker_says_so() {
    let (brokers, topic) = (brokers(), unique("linger"));
    create(&brokers, &topic, 1, &[]);
    let mut slow = sink(&brokers, &topic, &[]);
    // Records lie in the producer's queue for a while: closed is not durable.
    slow.linger = Millis(400);
    let mut writer = open(&slow).unwrap();
    write_all(&mut *writer, 5, &records(0..10));
    writer.close_epoch(5).unwrap();
    assert_eq!(writer.durable().unwrap(), None);
    until_durable(&mut *writer, 5);
    read_back(&brokers, &topic, 1, 10, |_| {});
}

#[test]
fn a_full_queue_takes_what_it_can_and_blocks_nobody() {
    let (brokers, topic) = (brokers(), unique("full"));
    create(&brokers, &topic, 1, &[]);
    let mut small = sink(&brokers, &topic, &[("queue.buffering.max.messages", "100")]);
    small.linger = Millis(200);
    let mut writer = open(&small).unwrap();
    let records = records(0..1_000);
    let begin = Instant::now();
    assert_eq!(writer.write(1, &records, 0).unwrap(), 100);
    assert_eq!(writer.write(1, &records, 100).unwrap(), 100, "none of it is acknowledged yet");
    assert!(begin.elapsed() < Duration::from_millis(150));
    let mut from = 100;
    let deadline = Instant::now() + LONG;
    while from < 1_000 {
        from = writer.write(1, &records, from).unwrap();
        assert!(Instant::now() < deadline);
    }
    writer.close_epoch(1).unwrap();
    until_durable(&mut *writer, 1);
    read_back(&brokers, &topic, 1, 1_000, |_| {});
}

#[test]
fn a_writer_that_is_dropped_delivers_what_it_took() {
    let (brokers, topic) = (brokers(), unique("drop"));
    create(&brokers, &topic, 1, &[]);
    let mut writer = open(&sink(&brokers, &topic, &[])).unwrap();
    write_all(&mut *writer, 1, &records(0..200));
    drop(writer);
    read_back(&brokers, &topic, 1, 200, |_| {});
}

#[test]
fn a_topic_that_does_not_exist_is_an_error_that_says_how_to_create_it() {
    let (brokers, topic) = (brokers(), unique("nowhere"));
    let error = open(&sink(&brokers, &topic, &[])).err().expect("no topic").to_string();
    assert!(error.starts_with(&format!("sink `scores`: topic `{topic}` does not exist at {brokers}")), "{error}");
    assert!(error.contains("--create"), "{error}");
}

#[test]
fn a_record_that_is_too_large_fails_with_its_size() {
    let (brokers, topic) = (brokers(), unique("toolarge"));
    create(&brokers, &topic, 1, &[("max.message.bytes", "2000")]);
    let mut writer = open(&sink(&brokers, &topic, &[])).unwrap();
    let large =
        Records { values: vec![b'x'; 5_000], value_ends: vec![5_000], event_times: vec![0], ..Records::default() };
    let deadline = Instant::now() + LONG;
    let mut answer = writer.write(1, &large, 0).map(|_| None);
    while let Ok(None) = answer {
        assert!(Instant::now() < deadline);
        answer = writer.durable();
    }
    let error = answer.unwrap_err().to_string();
    assert!(
        error.contains("a record of 5000 bytes is larger than its brokers take; raise `max.message.bytes`"),
        "{error}"
    );
}

/// A dead letter of so many bytes.
fn dead_letter(bytes: usize) -> Records {
    Records {
        values: vec![b'x'; bytes],
        value_ends: vec![bytes],
        header_names: vec!["reason".into()],
        headers: b"malformed".to_vec(),
        header_ends: vec![9],
        event_times: vec![0],
        ..Records::default()
    }
}

/// The size of each dead letter of a topic, and of which it was cut from what.
fn sizes(brokers: &str, topic: &str, count: usize) -> Vec<(usize, Option<String>)> {
    let mut sizes = Vec::new();
    read_back(brokers, topic, 1, count, |message| {
        let headers: BTreeMap<String, String> = message.headers().unwrap().iter().map(header).collect();
        assert_eq!(headers["reason"], "malformed");
        sizes.push((message.payload().unwrap().len(), headers.get(CUT_HEADER).cloned()));
    });
    sizes
}

#[test]
fn a_dead_letter_is_cut_to_what_its_topic_takes() {
    let brokers = brokers();
    // What a source hands over of a message that is too large, and Kafka's default: a batch of 1,048,588 bytes.
    for (limit, whole) in [("1048588", (1 << 20) + 1), ("2000", 5_000), ("4000000", 3_000_000)] {
        let topic = unique("deadletters");
        create(&brokers, &topic, 1, &[("max.message.bytes", limit)]);
        let mut bare = sink(&brokers, &topic, &[]);
        bare.headers = false;
        bare.linger = Millis(50);
        let mut writer = bare.open(opening("test".to_owned(), true)).unwrap();
        // They linger together, and must not be sent in one batch that is larger than the topic takes.
        for bytes in [100, whole, whole, 1_000, 1_000] {
            write_all(&mut *writer, 1, &dead_letter(bytes));
        }
        writer.close_epoch(1).unwrap();
        until_durable(&mut *writer, 1);
        let sizes = sizes(&brokers, &topic, 5);
        let (kept, limit) = (sizes[1].0, limit.parse::<usize>().unwrap());
        assert!(kept <= whole.min(limit) && kept >= whole.min(limit - 300), "{kept} bytes of {whole}");
        let cut_from = (kept < whole).then(|| whole.to_string());
        assert_eq!(sizes, [(100, None), (kept, cut_from.clone()), (kept, cut_from), (1_000, None), (1_000, None)]);
    }
}

#[test]
fn a_dead_letter_that_was_decided_fits_when_it_is_written_again() {
    let (brokers, topic) = (brokers(), unique("redone"));
    create(&brokers, &topic, 1, &[("max.message.bytes", "2000")]);
    let exactly_once = KafkaSink { delivery: Delivery::ExactlyOnce, ..sink(&brokers, &topic, &[]) };
    let mut open = opening(unique("job"), true);
    open.commits.pending = vec![(1, dead_letter(5_000))];
    drop(exactly_once.open(open).unwrap());
    // The end of the transaction is a record of its own.
    let consumer: BaseConsumer = client(&brokers).set("group.id", "redone").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let message = consumer.poll(LONG).expect("the dead letter").unwrap();
    assert!((1_700..2_000).contains(&message.payload_len()), "{} bytes", message.payload_len());
    let headers: BTreeMap<String, String> = message.headers().unwrap().iter().map(header).collect();
    assert_eq!(headers[CUT_HEADER], "5000");
}

#[test]
fn an_option_that_the_engine_owns_is_refused() {
    let error = open(&sink("127.0.0.1:1", "any", &[("acks", "1")])).err().expect("refused").to_string();
    assert_eq!(error, "sink `scores`: option `acks` can't be set: the engine's delivery guarantee rests on it");
}
