//! A job whose newest checkpoint is damaged, and whose outputs are in topics and tables: it does not go back by itself, says from where it
//! could, and what that repeats.

use std::collections::BTreeMap;

use serde_json::Value;

use super::service::Service;
use super::*;
use crate::program::Running;

const CARDS: i64 = 10;

/// Writes events. A card's stand in one partition, so that their order is given.
fn send(service: &Service, ids: std::ops::Range<i64>) {
    let line = |id| format!("{{\"id\":{id},\"at\":{},\"card\":{},\"amount\":1}}", 1_700_000_000_000 + id, id % CARDS);
    service.send("events", 2, ids.map(line));
}

/// How often each id is there; every vector must be that of its event: the number of its card's so far.
fn ids(vectors: impl IntoIterator<Item = Value>) -> BTreeMap<i64, usize> {
    let mut ids = BTreeMap::new();
    for vector in vectors {
        let id = vector["id"].as_i64().unwrap();
        assert_eq!(vector["card.count_30d"], 1 + id / CARDS, "{vector}");
        *ids.entry(id).or_default() += 1;
    }
    ids
}

/// Of epochs in which nothing was there is no checkpoint. A commit that is so late that such epochs are closed meanwhile must not name
/// them in its marker, or the next start would miss their checkpoint.
#[test]
fn a_late_commit_of_an_idle_job_is_no_sign_of_a_lost_checkpoint() {
    let service = Service::chaos(2);
    let mut command = service.command();
    command.env("MILLSTREAM_FAILPOINTS", "records-drained=sleep:1500").arg("run").arg(service.topology());
    let mut running = Running::start(command.args(["--http", "off"]));
    for half in [0..10, 10..20] {
        // The second while the first is being committed.
        send(&service, half);
        std::thread::sleep(Duration::from_millis(400));
    }
    service.until("vectors", 20, &mut running);
    drop(running);
    send(&service, 20..30);
    let mut running = service.run(&["--http", "off"]);
    service.until("vectors", 30, &mut running);
    running.terminate();
    let said = running.end();
    assert!(said.status.success(), "{}", said.err);
    let found = ids(service.consume("vectors").into_iter().map(|message| message["value"].clone()));
    assert!(found.len() == 30 && found.values().all(|count| *count == 1), "{found:?}");
}

/// What happens to the newest checkpoint's manifest.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
    /// Half of it is gone.
    Torn,
    /// It is gone, as after a disk that forgets what it had synced, or a backup that was put back.
    Lost,
}

#[test]
fn a_job_goes_on_from_an_older_checkpoint_when_it_may_and_says_what_that_repeats() {
    goes_on_when_it_may(Mishap::Torn);
}

#[test]
fn a_job_whose_newest_checkpoint_is_lost_finds_that_its_topics_know_more() {
    goes_on_when_it_may(Mishap::Lost);
}

fn goes_on_when_it_may(mishap: Mishap) {
    let service = Service::chaos(2);
    let mut running = service.run(&["--http", "off"]);
    for count in [100, 200, 300] {
        send(&service, count - 100..count);
        service.until("vectors", count as usize, &mut running);
    }
    drop(running);
    let listed = service.checkpoint("list");
    let number = |at: usize| listed[at]["number"].as_u64().unwrap();
    let newest = service.folder().join(format!("state/manifest/{}.json", number(1)));
    match mishap {
        Mishap::Torn => {
            let text = std::fs::read(&newest).unwrap();
            std::fs::write(&newest, &text[..text.len() / 2]).unwrap();
        }
        Mishap::Lost => std::fs::remove_file(&newest).unwrap(),
    }

    let refused = |options: &[&str], says: &[&str]| {
        let said = service.run(&[&["--http", "off"], options].concat()).end();
        assert_eq!(said.status.code(), Some(5), "{}", said.err);
        let missing = says.iter().find(|text| !said.err.contains(*text));
        assert_eq!(missing, None, "{}", said.err);
    };
    let older = format!("checkpoint {}", number(0));
    let file = format!("manifest/{}.json", number(1));
    let topic = service.topic("vectors");
    match mishap {
        Mishap::Torn => {
            refused(&[], &[&file, &format!("The newest one that is whole is {older} of epoch"), "`--allow-older`"]);
        }
        Mishap::Lost => {
            let committed =
                format!("is committed to topic `{topic}`, but the newest checkpoint that is there is of epoch");
            refused(&[], &[&committed, "`--allow-older --allow-repeat`"]);
        }
    }
    let topic = format!("sinks.vectors (topic `{topic}`)");
    // A start that was refused may have left one of its own that says the same.
    let gone_on =
        if mishap == Mishap::Torn { format!("gone on from `{older}`") } else { "gone on from `checkpoint ".into() };
    refused(&["--allow-older"], &[&gone_on, &topic, "`--allow-repeat`, or restore"]);

    // A supervisor may keep the flags: what is whole is gone on from.
    let allowed = ["--http", "off", "--allow-older", "--allow-repeat"];
    let mut running = service.run(&allowed);
    send(&service, 300..400);
    let all = |service: &Service| ids(service.consume("vectors").into_iter().map(|message| message["value"].clone()));
    let deadline = Instant::now() + LONG;
    while all(&service).len() < 400 {
        assert!(running.runs() && Instant::now() < deadline, "{}", running.err());
    }
    assert!(running.err().contains("going on from an older one"), "{}", running.err());
    drop(running);
    send(&service, 400..410);
    let mut running = service.run(&allowed);
    let deadline = Instant::now() + LONG;
    while all(&service).len() < 410 {
        assert!(running.runs() && Instant::now() < deadline, "{}", running.err());
    }
    running.terminate();
    let said = running.end();
    assert!(said.status.success() && !said.err.contains("older one"), "{}", said.err);

    // Nothing is lost. What is repeated is of the last third before the damage.
    let found = all(&service);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), (0..410).collect::<Vec<_>>());
    let repeated: Vec<i64> = found.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
    assert!(repeated.iter().all(|id| (200..300).contains(id)) && !repeated.is_empty(), "{repeated:?}");
    assert!(found.values().all(|count| *count <= 2), "{found:?}");
    let lines = std::fs::read_to_string(service.folder().join("vectors.jsonl")).unwrap();
    let lines = ids(lines.lines().map(|line| serde_json::from_str(line).unwrap()));
    assert!(lines.len() == 410 && lines.values().all(|count| *count == 1), "a file is cut back: {lines:?}");
}
