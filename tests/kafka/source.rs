//! What a Kafka source hands over: all of it, in order, from where it was told.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use millstream::sources::kafka::StartAt;
use millstream::sources::{Connection, Positions, SourceError, Topics};

use super::own_broker::Broker;
use super::proxy::{Network, Proxy};
use super::*;

#[test]
fn every_message_comes_once_and_in_order_to_its_worker() {
    let (brokers, topic) = (brokers(), unique("order"));
    create(&brokers, &topic, 4, &[]);
    write_numbers(&brokers, &topic, 4, 0..20_000);
    let mut source = Source::start(&brokers, &[&topic], Setup { workers: 2, ..Setup::default() });
    source.until_messages(20_000);
    assert_eq!(source.status.connection(), Connection::Reading);
    assert!(source.batches < 2_000, "{} batches: what waits comes together", source.batches);
    let (left, result) = source.stop();
    result.unwrap();
    assert_eq!(left.ended, 2, "each worker is told that it was all");
    for (partition, numbers) in numbers(&left.got) {
        let expected: Vec<u32> = (0..20_000).filter(|n| n % 4 == partition as u32).collect();
        assert_eq!(numbers, expected, "partition {partition}");
    }
    for message in &left.got {
        assert_eq!(message.worker as i32, message.partition % 2);
        assert_eq!(message.event_time, 1_700_000_000_000 + message.offset * 4 + i64::from(message.partition));
    }
}

#[test]
fn a_source_goes_on_where_it_was() {
    let (brokers, topic) = (brokers(), unique("resume"));
    create(&brokers, &topic, 3, &[]);
    write_numbers(&brokers, &topic, 3, 0..300);
    let mut first = Source::start(&brokers, &[&topic], Setup::default());
    first.until_messages(300);
    let (first, result) = first.stop();
    result.unwrap();
    write_numbers(&brokers, &topic, 3, 300..600);
    let setup = Setup { workers: 3, positions: first.positions, start: StartAt::Latest, ..Setup::default() };
    let mut second = Source::start(&brokers, &[&topic], setup);
    second.until_messages(300);
    let (second, result) = second.stop();
    result.unwrap();
    let found: BTreeSet<u32> = numbers(&second.got).into_values().flatten().collect();
    assert_eq!(found, (300..600).collect());
}

#[test]
fn a_source_that_starts_at_the_end_keeps_the_place_of_an_empty_partition() {
    let (brokers, topic) = (brokers(), unique("latest"));
    create(&brokers, &topic, 2, &[]);
    write_numbers(&brokers, &topic, 2, 0..10);
    let mut first = Source::start(&brokers, &[&topic], Setup { start: StartAt::Latest, ..Setup::default() });
    first.until("two positions", |source| source.positions.0.len() == 2);
    let (first, result) = first.stop();
    result.unwrap();
    assert!(first.got.is_empty());
    // While nothing runs, messages come: they are not skipped.
    write_numbers(&brokers, &topic, 2, 10..20);
    let setup = Setup { start: StartAt::Latest, positions: first.positions, ..Setup::default() };
    let mut second = Source::start(&brokers, &[&topic], setup);
    second.until_messages(10);
    second.stop().1.unwrap();
}

#[test]
fn partitions_that_are_added_while_nobody_reads_begin_at_their_beginning() {
    let (brokers, topic) = (brokers(), unique("grown"));
    create(&brokers, &topic, 2, &[]);
    write_numbers(&brokers, &topic, 2, 0..10);
    let latest = Setup { start: StartAt::Latest, ..Setup::default() };
    let mut first = Source::start(&brokers, &[&topic], latest.clone());
    first.until("two positions", |source| source.positions.0.len() == 2);
    let (first, result) = first.stop();
    result.unwrap();
    assert_eq!(first.topics[&topic].partitions, 2);
    add_partitions(&brokers, &topic, 3);
    write(&brokers, &topic, [(2, b"10".as_slice()), (2, b"11")]);
    // As a checkpoint of this build says it, and as one of an older build does.
    for topics in [first.topics.clone(), Topics::new()] {
        let setup = Setup { positions: first.positions.clone(), topics, ..latest.clone() };
        let mut second = Source::start(&brokers, &[&topic], setup);
        second.until_messages(2);
        let (second, result) = second.stop();
        result.unwrap();
        assert_eq!(numbers(&second.got), [(2, vec![10, 11])].into());
        assert_eq!(second.topics[&topic].partitions, 2, "that one was added is known for good");
    }
    // A start that was killed before it had the position of each partition has not read from them either.
    let mut positions = first.positions.clone();
    positions.0.remove(&(topic.clone(), 1));
    let mut third = Source::start(&brokers, &[&topic], Setup { positions, topics: first.topics, ..latest });
    third.until("three positions", |source| source.positions.0.len() == 3 && source.got.len() == 2);
    assert_eq!(third.positions.0[&(topic, 1)], 5);
    third.stop().1.unwrap();
}

#[test]
fn a_source_that_is_told_where_to_end_ends_there() {
    let (brokers, topic) = (brokers(), unique("until"));
    create(&brokers, &topic, 5, &[]);
    write_numbers(&brokers, &topic, 5, 0..20_000);
    let at = |partition: i32, offset: i64| ((topic.clone(), partition), offset);
    // One in the middle, one at the very end, one at the beginning, one that is not named, one from which it goes on.
    let until = Positions([at(0, 1_234), at(1, 4_000), at(2, 0), at(4, 2_000)].into());
    let setup = Setup {
        workers: 2,
        until: Some(until.clone()),
        positions: Positions([at(4, 1_990)].into()),
        ..Setup::default()
    };
    let mut source = Source::start(&brokers, &[&topic], setup.clone());
    source.until("the end", |source| source.ended == 2);
    let (source, result) = source.stop();
    result.unwrap();
    assert_eq!(source.positions, until, "it is where it was told to be, and nowhere else");
    let wanted: BTreeMap<i32, Vec<u32>> = [(0, 0..1_234_u32), (1, 0..4_000), (4, 1_990..2_000)]
        .map(|(partition, offsets)| (partition, offsets.map(|offset| offset * 5 + partition as u32).collect()))
        .into();
    assert_eq!(numbers(&source.got), wanted);
    // One that is there has nothing to read.
    let setup = Setup { positions: until.clone(), ..setup };
    let mut again = Source::start(&brokers, &[&topic], setup);
    again.until("the end", |source| source.ended == 2);
    let (again, result) = again.stop();
    result.unwrap();
    assert_eq!((again.got, again.positions), (Vec::new(), until));
}

/// Markers of transactions have offsets, and the last record before the end may have been removed.
#[test]
fn a_source_ends_behind_offsets_that_are_no_messages() {
    let (brokers, topic) = (brokers(), unique("until-marker"));
    create(&brokers, &topic, 1, &[]);
    write_transaction(&brokers, &topic, 10);
    // The marker has offset 10: a position behind it is one that a start at the end of the topic has.
    let until = Positions([((topic.clone(), 0), 11)].into());
    let mut source = Source::start(&brokers, &[&topic], Setup { until: Some(until.clone()), ..Setup::default() });
    source.until("the end", |source| source.ended == 1);
    let (source, result) = source.stop();
    result.unwrap();
    assert_eq!((source.got.len(), source.positions), (10, until));
}

#[test]
fn a_topic_that_was_made_anew_is_a_gap_however_far_it_has_grown() {
    let (brokers, topic) = (brokers(), unique("anew"));
    create(&brokers, &topic, 1, &[]);
    write_numbers(&brokers, &topic, 1, 0..10);
    let mut first = Source::start(&brokers, &[&topic], Setup::default());
    first.until_messages(10);
    let (first, result) = first.stop();
    result.unwrap();
    let known = first.topics[&topic].id.clone().expect("the broker says the topic's id");
    delete(&brokers, &topic);
    create(&brokers, &topic, 1, &[]);
    write_numbers(&brokers, &topic, 1, 0..30);
    let setup = Setup { positions: first.positions, topics: first.topics, ..Setup::default() };
    match Source::start(&brokers, &[&topic], setup.clone()).failure() {
        SourceError::Gap { partition: 0, position: 10, detail, .. } => {
            assert!(detail.starts_with(&format!("the topic was made anew: its id was {known} and is ")), "{detail}");
        }
        other => panic!("{other}"),
    }
    // Nothing was read of the topic that is gone: nothing is missed.
    let positions = Positions([((topic.clone(), 0), 0)].into());
    let mut second = Source::start(&brokers, &[&topic], Setup { positions, ..setup });
    second.until_messages(30);
    let (second, result) = second.stop();
    result.unwrap();
    assert_ne!(second.topics[&topic].id.as_ref(), Some(&known));
}

#[test]
fn a_topic_that_is_deleted_while_it_is_read_ends_the_source_and_one_made_anew_does_too() {
    let (brokers, deleted, anew) = (brokers(), unique("deleted"), unique("replaced"));
    let read = |topic: &str| {
        create(&brokers, topic, 1, &[]);
        write_numbers(&brokers, topic, 1, 0..10);
        let mut source = Source::start(&brokers, &[topic], Setup::default());
        source.until_messages(10);
        delete(&brokers, topic);
        source
    };
    let source = read(&deleted);
    let replaced = read(&anew);
    create(&brokers, &anew, 1, &[]);
    write_numbers(&brokers, &anew, 1, 0..30);
    // It is told by the id, or by the position, if that was looked for before the new topic had grown past it.
    let error = replaced.failure();
    assert!(matches!(error, SourceError::Gap { partition: 0, .. }), "{error}");
    let error = source.failure().to_string();
    assert!(error.contains("it was deleted while it was read: topic"), "{error}");
}

#[test]
fn several_topics_are_one_stream() {
    let brokers = brokers();
    let topics = [unique("one"), unique("two")];
    for topic in &topics {
        create(&brokers, topic, 1, &[]);
        write_numbers(&brokers, topic, 1, 0..50);
    }
    let mut source = Source::start(&brokers, &[&topics[0], &topics[1]], Setup::default());
    source.until_messages(100);
    for topic in &topics {
        assert_eq!(source.got.iter().filter(|got| got.topic == *topic).count(), 50);
    }
    source.stop().1.unwrap();
}

#[test]
fn a_position_that_was_deleted_is_a_gap_and_never_a_jump() {
    let (brokers, topic) = (brokers(), unique("gap"));
    create(&brokers, &topic, 1, &[]);
    write_numbers(&brokers, &topic, 1, 0..100);
    delete_before(&brokers, &topic, 0, 60);
    let positions = Positions([((topic.clone(), 0), 40)].into());
    let source = Source::start(&brokers, &[&topic], Setup { positions, ..Setup::default() });
    let error = source.failure();
    assert!(matches!(&error, SourceError::Gap { partition: 0, position: 40, .. }), "{error}");
    assert!(error.to_string().contains("there are 60 to 99"), "{error}");
    assert!(error.to_string().contains("`--allow-gap events`"), "{error}");

    // A topic that was made anew has fewer messages than were read of the old one.
    let positions = Positions([((topic.clone(), 0), 1_000)].into());
    let error = Source::start(&brokers, &[&topic], Setup { positions, ..Setup::default() }).failure();
    assert!(matches!(&error, SourceError::Gap { position: 1_000, .. }), "{error}");

    let positions = Positions([((topic.clone(), 5), 1)].into());
    let error = Source::start(&brokers, &[&topic], Setup { positions, ..Setup::default() }).failure();
    assert!(error.to_string().contains("has 1 partitions now"), "{error}");
}

#[test]
fn a_partition_that_is_added_is_read_from_its_beginning() {
    let (brokers, topic) = (brokers(), unique("added"));
    create(&brokers, &topic, 1, &[]);
    write_numbers(&brokers, &topic, 1, 0..10);
    let setup = Setup { workers: 2, start: StartAt::Latest, ..Setup::default() };
    let mut source = Source::start(&brokers, &[&topic], setup);
    source.until("a position", |source| source.positions.0.len() == 1);
    add_partitions(&brokers, &topic, 3);
    // The producer has to see the new partitions as well.
    write(&brokers, &topic, [(1, b"1".as_slice()), (2, b"2".as_slice()), (0, b"0".as_slice())]);
    source.until_messages(3);
    let (left, result) = source.stop();
    result.unwrap();
    let found: BTreeSet<(i32, i64, usize)> = left.got.iter().map(|g| (g.partition, g.offset, g.worker)).collect();
    assert_eq!(found, [(0, 10, 0), (1, 0, 1), (2, 0, 0)].into());
}

#[test]
fn a_topic_that_does_not_exist_is_an_error_that_says_how_to_create_it() {
    let (brokers, topic) = (brokers(), unique("missing"));
    let error = Source::start(&brokers, &[&topic], Setup::default()).failure().to_string();
    assert!(error.contains(&format!("source `events`: topic `{topic}` does not exist at {brokers}")), "{error}");
    assert!(error.contains("--create"), "{error}");
}

#[test]
fn a_broker_that_is_not_there_is_waited_for_until_the_job_stops() {
    let mut source = Source::start("127.0.0.1:1", &["any"], Setup { workers: 2, ..Setup::default() });
    assert!(matches!(source.inboxes[0].recv_timeout(Duration::from_millis(500)), Err(RecvTimeoutError::Timeout)));
    assert_eq!(source.status.connection(), Connection::Connecting);
    source.batches = 0;
    let begin = Instant::now();
    let (left, result) = source.stop();
    result.unwrap();
    assert_eq!(left.ended, 2);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn a_message_that_is_too_large_comes_cut_for_the_decoder_to_reject() {
    let (brokers, topic) = (brokers(), unique("large"));
    create(&brokers, &topic, 1, &[("max.message.bytes", "4000000")]);
    let large = vec![b'x'; 3_000_000];
    write(&brokers, &topic, [(0, b"small".as_slice()), (0, &large), (0, b"after".as_slice())]);
    let mut source = Source::start(&brokers, &[&topic], Setup { message_size_max: 1_000, ..Setup::default() });
    source.until_messages(3);
    let sizes: Vec<usize> = source.got.iter().map(|got| got.value.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [5, 1_001, 5]);
    source.stop().1.unwrap();
}

#[test]
fn batches_are_bounded_in_bytes_and_tombstones_are_null() {
    let (brokers, topic) = (brokers(), unique("bytes"));
    create(&brokers, &topic, 1, &[]);
    let value = vec![b'x'; 100_000];
    write(&brokers, &topic, (0..40).map(|_| (0, value.as_slice())));
    let producer: BaseProducer = client(&brokers).create().unwrap();
    producer.send(BaseRecord::<[u8], [u8]>::to(&topic).key(b"gone".as_slice())).map_err(|e| e.0).unwrap();
    producer.flush(LONG).unwrap();
    let mut source = Source::start(&brokers, &[&topic], Setup::default());
    source.until_messages(41);
    // 256 KiB are reached with the third message.
    assert!(source.batches >= 41 / 3, "{} batches", source.batches);
    assert_eq!(source.got[40].value, None);
    source.stop().1.unwrap();
}

#[test]
fn a_partition_at_its_end_becomes_idle_once() {
    let (brokers, topic) = (brokers(), unique("idle"));
    create(&brokers, &topic, 2, &[]);
    write(&brokers, &topic, [(0, b"1".as_slice())]);
    let setup = Setup { idle_after: Duration::from_millis(200), ..Setup::default() };
    let mut source = Source::start(&brokers, &[&topic], setup);
    source.until("both idle", |source| source.idle.len() == 2);
    write(&brokers, &topic, [(1, b"2".as_slice())]);
    source.until("idle again", |source| source.idle.len() == 3);
    assert_eq!(source.idle[2], (topic.clone(), 1), "only the partition that had a message");
    source.stop().1.unwrap();
}

/// Or time would go on without what waits at a broker that is restarted, or on the way from it.
#[test]
fn no_partition_is_idle_while_its_broker_is_not_heard() {
    let proxy = Proxy::start();
    let broker = Broker::behind(&proxy);
    let topic = unique("away");
    create(&broker.address(), &topic, 2, &[]);
    let idle_after = Duration::from_secs(4);
    let mut source = Source::start(&proxy.address(), &[&topic], Setup { idle_after, ..Setup::default() });
    let stall = |stalls: bool| proxy.set(if stalls { Network::Stalls } else { Network::Works });
    let kill = |kill: bool| broker.run(&[if kill { "kill" } else { "start" }, "1"]);
    let troubles: [&dyn Fn(bool); 2] = [&stall, &kill];
    for (n, trouble) in (1..).zip(troubles) {
        write(&broker.address(), &topic, [(0, b"1".as_slice()), (1, b"2")]);
        source.until_messages(2 * n);
        source.idle.clear();
        // Both have been read to their ends.
        let read = Instant::now();
        source.until("their ends", |_| read.elapsed() > Duration::from_secs(1));
        trouble(true);
        source.until("long enough", |_| read.elapsed() > 3 * idle_after);
        assert!(source.idle.is_empty(), "{:?}", source.idle);
        trouble(false);
        source.until("both idle", |source| source.idle.len() == 2);
    }
    source.stop().1.unwrap();
}

#[test]
fn a_partition_whose_message_waits_behind_others_is_not_idle() {
    let (brokers, topic) = (brokers(), unique("behind"));
    create(&brokers, &topic, 2, &[]);
    write(&brokers, &topic, [(1, b"first".as_slice())]);
    let idle_after = Duration::from_secs(3);
    let mut source = Source::start(&brokers, &[&topic], Setup { idle_after, ..Setup::default() });
    source.until_messages(1);
    // More than the worker takes, which is held meanwhile.
    let many: Vec<(i32, &[u8])> = vec![(0, b"of another".as_slice()); 20_000];
    write(&brokers, &topic, many);
    std::thread::sleep(2 * idle_after);
    write(&brokers, &topic, [(1, b"second".as_slice())]);
    std::thread::sleep(Duration::from_secs(1));
    source.until("the second", |source| source.got.iter().filter(|got| got.partition == 1).count() == 2);
    assert!(source.idle.is_empty(), "{:?} after {} messages", source.idle, source.got.len());
    source.until("both idle", |source| source.idle.len() == 2);
    source.stop().1.unwrap();
}

#[test]
fn committed_positions_reach_the_group_for_lag_tools() {
    let (brokers, topic) = (brokers(), unique("commit"));
    create(&brokers, &topic, 1, &[]);
    write_numbers(&brokers, &topic, 1, 0..10);
    let mut source = Source::start(&brokers, &[&topic], Setup::default());
    source.until_messages(10);
    source.status.commit(Positions([((topic.clone(), 0), 7)].into()));
    let deadline = Instant::now() + LONG;
    loop {
        let committed = committed(&brokers, &source.job, &topic);
        if committed == Offset::Offset(7) {
            break;
        }
        assert!(Instant::now() < deadline, "{committed:?}");
    }
    source.stop().1.unwrap();
}

#[test]
fn an_option_that_the_engine_owns_is_refused() {
    let options = [("isolation.level".to_owned(), "read_uncommitted".to_owned())].into();
    let error = Source::try_start("127.0.0.1:1", &["any"], Setup { options, ..Setup::default() }).err().unwrap();
    let error = error.to_string();
    assert!(error.starts_with("source `events`: option `isolation.level` can't be set: "), "{error}");
}
