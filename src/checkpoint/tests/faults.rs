//! A store in memory whose answers get lost, and whose requests fail before and after they have had their effect.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;

use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::*;
use crate::checkpoint::storage::Bucket;

/// What goes wrong with a put.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It fails, and the object is not made.
    Before,
    /// It fails although the object is made.
    After,
    /// It fails although the object is made, and the store can't be asked whether it is.
    AfterAndAway,
    /// The answer is lost, and the client's second try finds the object there.
    AnswerLost,
    /// Two makers at once: neither makes it.
    Conflict,
    /// The store takes no notice of the condition.
    Unconditional,
}

/// What goes wrong with the next puts of manifests; nothing with those after.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<VecDeque<Fault>>>);

thread_local! {
    /// Whether the next answer that this thread asks for does not come.
    static AWAY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    /// Whether lists that this thread asks for do not come.
    static NO_LISTS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Faults {
    pub fn next<const N: usize>(&self, faults: [Fault; N]) {
        self.0.lock().unwrap().extend(faults);
    }

    /// From now on all goes well.
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// A place in memory where things go wrong.
pub fn memory(faults: Faults) -> Place {
    memories(faults, 1).pop().unwrap()
}

/// The same place as so many processes see it.
pub fn memories(faults: Faults, count: usize) -> Vec<Place> {
    let store = Arc::new(Faulty { inner: InMemory::new(), faults });
    let bucket = |_| Bucket::new(store.clone(), "s3://memory/job".to_string(), Path::from("job")).unwrap();
    (0..count).map(bucket).map(Place::bucket).collect()
}

#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    faults: Faults,
}

impl fmt::Display for Faulty {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(to)
    }
}

fn failed() -> Error {
    Error::Generic { store: "test", source: "no answer".into() }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let is_manifest = options.mode == PutMode::Create;
        let fault = is_manifest.then(|| self.faults.0.lock().unwrap().pop_front()).flatten().unwrap_or(Fault::None);
        let exists = || Error::AlreadyExists { path: at.to_string(), source: "it is there".into() };
        match fault {
            Fault::Before => return Err(failed()),
            Fault::Conflict => return Err(exists()),
            Fault::Unconditional => options.mode = PutMode::Overwrite,
            Fault::None | Fault::After | Fault::AfterAndAway | Fault::AnswerLost => {}
        }
        let put = self.inner.put_opts(at, payload, options).await?;
        match fault {
            Fault::After => Err(failed()),
            Fault::AfterAndAway => {
                AWAY.set(true);
                Err(failed())
            }
            Fault::AnswerLost => Err(exists()),
            _ => Ok(put),
        }
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        if AWAY.replace(false) {
            return Err(failed());
        }
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(&self, all: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(all)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if NO_LISTS.get() {
            return Box::pin(futures_util::stream::once(async { Err(failed()) }));
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Whatever happens to the put of a manifest, the checkpoints after it have each block once.
#[test]
fn no_fault_loses_or_repeats_a_block() {
    use Fault::{After, AfterAndAway, AnswerLost, Before, Conflict};
    for fault in [Before, After, AfterAndAway, AnswerLost, Conflict] {
        let faults = Faults::default();
        let place = memory(faults.clone());
        let mut store = store(&place);
        store.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        faults.next([fault, fault]);
        let mut waiting = Vec::new();
        for epoch in 9..12 {
            waiting.extend(blocks(epoch));
            match store.publish_and_tidy(&progress(epoch), &waiting) {
                Ok(_) => waiting.clear(),
                Err(error) => {
                    assert!(error.may_pass() && [Before, AfterAndAway].contains(&fault), "{fault:?}: {error}")
                }
            }
        }
        assert_eq!(waiting, [], "{fault:?}: the third succeeds");
        drop(store);
        let (_, loaded) = again(&place);
        let loaded = loaded.unwrap();
        assert_eq!(loaded.progress, progress(11), "{fault:?}");
        assert_eq!(loaded.nodes["card"][&255].len(), 4, "{fault:?}: of the epochs 8 to 11, each once");
        assert_eq!(loaded.outbox[&("kafka \"quoted\"".to_string(), 1)], [(11, vec![11])], "{fault:?}");
    }
}

/// A manifest that came through although it seemed to fail is a checkpoint: whoever starts then goes on from it.
#[test]
fn a_manifest_whose_answer_was_lost_may_be_the_last_word() {
    let faults = Faults::default();
    let place = memory(faults.clone());
    let mut first = store(&place);
    first.publish_and_tidy(&progress(8), &blocks(8)).unwrap();
    faults.next([Fault::AfterAndAway]);
    assert!(first.publish_and_tidy(&progress(9), &blocks(9)).unwrap_err().may_pass());
    let (mut second, loaded) = again(&place);
    assert_eq!(loaded.unwrap().progress, progress(9));
    // What the first has of epoch 9 is not published again under another number.
    let error = first.publish_and_tidy(&progress(10), &[blocks(9), blocks(10)].concat()).unwrap_err();
    assert!(matches!(error, CheckpointError::TakenOver { .. }), "{error}");
    second.publish_and_tidy(&progress(10), &blocks(10)).unwrap();
    assert_eq!(second.load().unwrap().unwrap().nodes["card"][&255].len(), 3);
}

#[test]
fn a_start_is_not_misled_by_faults() {
    use Fault::{After, AfterAndAway, AnswerLost, Before, Conflict, None};
    for fault in [Before, After, AfterAndAway, AnswerLost, Conflict] {
        let faults = Faults::default();
        let place = memory(faults.clone());
        store(&place).publish_and_tidy(&progress(8), &blocks(8)).unwrap();
        faults.next([fault]);
        let mut second = Store::open(&place, "job", "digest").unwrap();
        second.load().unwrap();
        if second.take_over().is_err() {
            assert!([Before, AfterAndAway].contains(&fault), "{fault:?}");
            drop(again(&place));
        }
        assert_eq!(again(&place).1.unwrap().progress, progress(8), "{fault:?}");
    }
    // The second put is the one that proves the fence.
    let faults = Faults::default();
    let place = memory(faults.clone());
    faults.next([None, Fault::Unconditional]);
    let error = Store::open(&place, "job", "digest").unwrap().take_over().unwrap_err().to_string();
    assert!(error.contains("1.json: the store has made an object anew that was there"), "{error}");
}

/// Objects of several parts, written and read.
#[test]
fn a_large_segment_goes_in_parts() {
    let place = memory(Faults::default());
    let mut store = store(&place);
    let bytes: Vec<u8> = (0..40 << 20).map(|at: u32| ((at * 31) >> 3) as u8).collect();
    let large: Vec<Block> =
        bytes.chunks(5 << 20).map(|part| block(Kind::Outbox, "kafka \"quoted\"", 1, 9, part.to_vec())).collect();
    store.publish_and_tidy(&progress(9), &large).unwrap();
    let outbox = store.load().unwrap().unwrap().outbox;
    assert_eq!(
        outbox[&("kafka \"quoted\"".to_string(), 1)].iter().flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>(),
        bytes
    );
}

/// What is being merged has no manifest that names it, and so looks like something that a crash has left.
#[test]
fn nothing_is_merged_before_what_crashes_have_left_is_gone() {
    let place = memory(Faults::default());
    let mut former = store(&place);
    let segments = former.limits.files as u64 + 4;
    for epoch in 8..8 + segments {
        former.publish(&progress(epoch), &blocks(epoch)).unwrap();
    }
    drop(former);
    let mut store = store(&place);
    NO_LISTS.set(true);
    for epoch in [40, 41] {
        store.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
        assert!(store.compaction.is_none(), "it may be swept");
    }
    NO_LISTS.set(false);
    store.publish_and_tidy(&progress(42), &blocks(42)).unwrap();
    assert!(store.compaction.is_some());
    for epoch in 43..60 {
        store.publish_and_tidy(&progress(epoch), &blocks(epoch)).unwrap();
    }
    let loaded = store.load().unwrap().unwrap();
    assert_eq!(loaded.progress, progress(59), "every segment that it names is there");
}
