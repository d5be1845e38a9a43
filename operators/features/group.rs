//! The operator: rows update the state of their key, or read it as of their time.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::GroupConfig;
use super::answers::Answers;
use super::as_of::{Scalar, Scalars};
use super::definition::{Definition, fields};
use super::entity::{Entity, Horizon};
use super::incoming::{Values, accept};
use super::port::{Port, Reader};
use super::steps;
use super::summary::Measured;
use crate::batch::{Batch, EventTime, Row};
use crate::error::ConfigError;
use crate::key::{KeyColumns, hash};
use crate::operator::{Operator, Outputs};
use crate::state::{Groups, KeyedState, Place, StateError};
use crate::units::Millis;

/// The last column of published features: from which time on (milliseconds since 1970) a read would find other features if the key
/// has no event until then, `time_since_last` aside, which grows at once. Null if it never would.
pub const VALID_UNTIL: &str = "valid_until";

/// The feature group operator.
///
/// - Input port 0 takes rows of the group's input: they update. Input port `i + 1` takes the rows of reader `i`.
/// - Output port `i` gives the rows of reader `i` with the group's features on the right, as of each row's event time and
///   in the order they were processed. Output port `readers.len()` gives the published features, once an epoch: a row for
///   each key changed in it, with the time from which on it would be another ([`VALID_UNTIL`]).
/// - A read at time t sees the rows with event time in `(t - w, t]` that were processed before it, whatever the order of
///   times; tiled windows see the tiles up to the one that holds t. Rows at or before the watermark may find less, for
///   what no row in time can reach is dropped.
/// - A row of the input with a null in its key is rejected. A reader's row with a null or unknown key reads an empty
///   entity, unless the reader feeds the group: then it is rejected too.
/// - At most one reader feeds: the rows of a second one would come apart from their own updates.
///
/// ```
/// use std::sync::Arc;
/// use arrow::array::{Array, AsArray, Float64Array, RecordBatch, StringArray};
/// use arrow::datatypes::{Float64Type, Int64Type};
/// use millstream_operators::{Batch, Operator, Outputs, Row};
/// use millstream_operators::features::{FeatureGroup, GroupConfig, Reader};
///
/// let records = RecordBatch::try_from_iter([
///     ("card", Arc::new(StringArray::from(vec!["a", "a", "b"])) as Arc<dyn Array>),
///     ("amount", Arc::new(Float64Array::from(vec![10.0, 20.0, 5.0]))),
/// ])?;
/// let config: GroupConfig = serde_json::from_str(
///     r#"{ "from": "payments", "key": ["card"],
///          "aggregates": [{ "of": "amount", "ops": ["count", "mean"], "windows": ["10m"] }] }"#,
/// )?;
/// let spine = records.schema();
/// let reader = Reader { name: "fraud".into(), spine, on: vec![], exclude_self: false, feeds: true };
/// let mut group = FeatureGroup::compile("card", &config, &records.schema(), &[reader]).unwrap();
///
/// let row = |offset, event_time| Row { source: 0, partition: 0, offset, event_time, arrived_micros: 0 };
/// let mut out = Outputs::new(2);
/// group.process(1, Batch::new(records, vec![row(0, 1_000), row(1, 2_000), row(2, 3_000)]), &mut out);
///
/// let vectors = &out.ports[0][0].records;
/// let counts = vectors.column_by_name("card.amount_count_10m").unwrap().as_primitive::<Int64Type>();
/// let means = vectors.column_by_name("card.amount_mean_10m").unwrap().as_primitive::<Float64Type>();
/// assert_eq!(counts.values(), &[1, 2, 1]);
/// assert_eq!(means.values(), &[10.0, 15.0, 5.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FeatureGroup {
    stage: Arc<str>,
    definition: Definition,
    keys: KeyColumns,
    ports: Vec<Port>,
    features: Vec<Field>,
    published: SchemaRef,
    online: bool,
    state: KeyedState<Entity>,
    horizon: Horizon,
    /// Keys changed since the last publication, and the row that changed each last.
    changed: Vec<(Place, Row)>,
    /// Updates since the last sweep for keys to forget.
    updates: usize,
}

impl FeatureGroup {
    /// Compiles the group `name` for rows of `input` and for its readers.
    ///
    /// # Errors
    /// All that is wrong: by its path within the group (`aggregates[1].of`), or for a reader under
    /// `vectors.<reader>.join`.
    pub fn compile(
        name: &str,
        config: &GroupConfig,
        input: &SchemaRef,
        readers: &[Reader],
    ) -> Result<FeatureGroup, Vec<ConfigError>> {
        let definition = Definition::compile(config, input)?;
        let features = fields(name, &definition.features);
        let (mut ports, mut errors) = (Vec::new(), Vec::new());
        for reader in readers {
            match Port::compile(reader, config, input, &definition, &features) {
                Ok(port) => ports.push(port),
                Err(error) => errors.push(error.under(&format!("vectors.{}.join", reader.name))),
            }
        }
        if let Some(second) = readers.iter().filter(|reader| reader.feeds).nth(1) {
            let message =
                format!("another vector with this spine reads `{name}` already, and only one can keep it fed");
            let hint = "score one vector with both models, or give this one a prepared stream as its spine".to_string();
            let path = format!("vectors.{}.join", second.name);
            errors.push(ConfigError::new(path, message).with_hint(Some(hint)));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let named = definition.features.iter().map(|f| Field::new(&f.name, f.data_type.clone(), true));
        let key = std::iter::once(Field::new("key", DataType::Utf8, false));
        let valid_until = std::iter::once(Field::new(VALID_UNTIL, DataType::Int64, true));
        Ok(FeatureGroup {
            stage: name.into(),
            keys: KeyColumns::new(definition.key.clone()),
            ports,
            features,
            published: Arc::new(Schema::new(key.chain(named).chain(valid_until).collect::<Vec<_>>())),
            online: config.online,
            state: KeyedState::new(),
            horizon: Horizon::start(&definition.frame),
            changed: Vec::new(),
            updates: 0,
            definition,
        })
    }

    /// What it was compiled to.
    pub(super) fn definition(&self) -> &Definition {
        &self.definition
    }

    /// The state of each key, as bytes.
    #[cfg(test)]
    pub(super) fn states(&self) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
        let bytes = |entity: &Entity| postcard::to_allocvec(entity).unwrap();
        self.state.iter().map(|(key, entity)| (key.to_vec(), bytes(entity))).collect()
    }

    /// The features as columns of a vector, under their full names `group.feature`.
    pub fn features(&self) -> Vec<Field> {
        self.features.clone()
    }

    /// The columns of output port `reader`: the reader's own, then the features.
    ///
    /// # Panics
    /// If there is no such reader.
    pub fn reader_schema(&self, reader: usize) -> SchemaRef {
        self.ports[reader].schema.clone()
    }

    /// A key without an event for this long is forgotten.
    pub fn ttl(&self) -> Millis {
        Millis(self.definition.ttl)
    }

    /// The columns of the published features: `key`, then the features under their names without the group, then
    /// [`VALID_UNTIL`].
    pub fn published_schema(&self) -> SchemaRef {
        self.published.clone()
    }

    /// Makes a batch ready: rejects what cannot be used and looks up the keys. Updates add their keys.
    fn prepare(&mut self, port: usize, batch: Batch, out: &mut Outputs) -> Prepared {
        let role = match port.checked_sub(1) {
            None => Role::Update,
            Some(reader) => match &self.ports[reader] {
                Port { feeds: None, .. } => Role::Read,
                Port { exclude_self: true, .. } => Role::ReadThenUpdate,
                Port { .. } => Role::UpdateThenRead,
            },
        };
        let keys = if port == 0 { &self.keys } else { &self.ports[port - 1].keys };
        let input = |batch: &Batch| match port.checked_sub(1).and_then(|reader| self.ports[reader].feeds.as_ref()) {
            Some(columns) => batch.records.project(columns).expect("the reader has the input's columns"),
            None => batch.records.clone(),
        };
        let (batch, values) = match role {
            Role::Read => (batch, Values::new()),
            _ => accept(&self.definition, &self.stage, keys, input, batch, out),
        };
        let mut places = Vec::with_capacity(batch.len());
        let (state, frame) = (&mut self.state, &self.definition.frame);
        keys.for_each(&batch, |_, key| {
            places.push(match (key, role) {
                (Some(key), Role::Read) => state.find(hash(key), key),
                (Some(key), _) => Some(state.find_or_insert(hash(key), key, || Entity::new(frame))),
                (None, _) => None,
            });
        });
        let looked_up = match role {
            Role::Read => Vec::new(),
            _ if self.definition.as_of.is_empty() => Vec::new(),
            _ => {
                let records = input(&batch);
                self.definition.as_of.iter().map(|lookup| records.column(lookup.column).clone()).collect()
            }
        };
        self.updates += if role == Role::Read { 0 } else { batch.len() };
        Prepared { port, role, batch, values, places, looked_up }
    }

    /// The state and the rows at work on it.
    fn live<'a>(&'a mut self, prepared: &'a [Prepared]) -> Live<'a> {
        let works = prepared.iter().map(|prepared| Work {
            prepared,
            scalars: prepared.looked_up.iter().filter_map(|column| Scalars::new(column)).collect(),
            answers: Answers::new(
                &self.definition,
                if prepared.role == Role::Update { 0 } else { prepared.batch.len() },
            ),
        });
        Live {
            works: works.collect(),
            definition: &self.definition,
            horizon: &self.horizon,
            state: &mut self.state,
            changed: self.online.then_some(&mut self.changed),
            looked_up: Vec::new(),
        }
    }

    /// Gives the answered rows of a reader, which were read in `order` (`None`: as they stand).
    fn give(&self, prepared: &Prepared, columns: Vec<ArrayRef>, order: Option<&[u32]>, out: &mut Outputs) {
        if prepared.role == Role::Update || prepared.batch.is_empty() {
            return;
        }
        let reader = prepared.port - 1;
        let ordered = order.map(|order| prepared.batch.take(order).expect("the order is one of the batch's rows"));
        let batch = ordered.as_ref().unwrap_or(&prepared.batch);
        let batch = batch.with_columns(self.ports[reader].schema.clone(), columns);
        out.give(reader, batch.expect("the answers follow the schema"));
    }
}

/// What the rows of a port do. In the order in which rows of one time are processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Update,
    UpdateThenRead,
    ReadThenUpdate,
    Read,
}

/// A batch made ready.
struct Prepared {
    port: usize,
    role: Role,
    batch: Batch,
    values: Values,
    /// The key of each row; none for a read of an unknown one.
    places: Vec<Option<Place>>,
    /// The columns of the as-of lookups.
    looked_up: Vec<ArrayRef>,
}

/// A batch at work.
struct Work<'a> {
    prepared: &'a Prepared,
    scalars: Vec<Scalars<'a>>,
    answers: Answers,
}

/// The group's state and the batches at work on it.
struct Live<'a> {
    works: Vec<Work<'a>>,
    definition: &'a Definition,
    horizon: &'a Horizon,
    state: &'a mut KeyedState<Entity>,
    changed: Option<&'a mut Vec<(Place, Row)>>,
    /// The values of the lookups of the row at hand.
    looked_up: Vec<Option<Scalar>>,
}

impl Live<'_> {
    /// Processes one row of one batch.
    #[inline(always)]
    fn step(&mut self, work: usize, row: usize) {
        let Live { works, definition, horizon, state, changed, looked_up } = self;
        let Work { prepared, scalars, answers } = &mut works[work];
        let (role, frame, time) = (prepared.role, &definition.frame, prepared.batch.rows[row].event_time);
        let Some(place) = prepared.places[row] else {
            answers.push(definition, None, time);
            return;
        };
        if role == Role::Read {
            let entity = state.at_mut_telling(place, |entity, to| steps::read(entity.newest, time, to));
            entity.read(frame, time);
            answers.push(definition, Some(entity), time);
            return;
        }
        let reads = role != Role::Update;
        let measures = definition.measures.len();
        let values: &[Measured] = &prepared.values[row * measures..(row + 1) * measures];
        looked_up.extend(scalars.iter().map(|values| values.get(row)));
        let entity = state.at_mut_telling(place, |entity, to| {
            let event = steps::Update { time, watermark: horizon.watermark, values, looked_up };
            steps::update(entity.newest, reads, &event, to);
        });
        if reads {
            entity.read(frame, time);
        }
        if role == Role::ReadThenUpdate {
            answers.push(definition, Some(entity), time);
        }
        entity.update(frame, horizon, time, values, looked_up);
        if role == Role::UpdateThenRead {
            answers.push(definition, Some(entity), time);
        }
        let Some(changed) = changed else { return };
        let origin = prepared.batch.rows[row];
        match entity.changed.checked_sub(1) {
            Some(at) => changed[at as usize].1 = origin,
            None => {
                changed.push((place, origin));
                entity.changed = changed.len() as u32;
            }
        }
    }

    /// The columns of each batch's answers.
    fn finish(self) -> Vec<Vec<ArrayRef>> {
        let definition = self.definition;
        self.works.into_iter().map(|work| work.answers.finish(definition)).collect()
    }
}

impl Operator for FeatureGroup {
    fn process(&mut self, port: usize, batch: Batch, out: &mut Outputs) {
        let prepared = [self.prepare(port, batch, out)];
        let mut live = self.live(&prepared);
        for row in 0..prepared[0].batch.len() {
            live.step(0, row);
        }
        for columns in live.finish() {
            self.give(&prepared[0], columns, None, out);
        }
    }

    fn process_tick(&mut self, batches: Vec<(usize, Batch)>, out: &mut Outputs) {
        let mut ports: Vec<Vec<Batch>> = vec![Vec::new(); self.ports.len() + 1];
        for (port, batch) in batches {
            ports[port].push(batch);
        }
        let whole = |batches: &Vec<Batch>| Batch::concat(batches).expect("a port has one schema");
        let mut prepared = Vec::new();
        for (port, batches) in ports.iter().enumerate() {
            if let Some(batch) = whole(batches) {
                prepared.push(self.prepare(port, batch, out));
            }
        }
        // Keys that a later port's updates make are looked up again: a read may come after them.
        for prepared in prepared.iter_mut().filter(|prepared| prepared.role == Role::Read) {
            let (state, places) = (&self.state, &mut prepared.places);
            self.ports[prepared.port - 1].keys.for_each(&prepared.batch, |row, key| {
                places[row] = key.and_then(|key| state.find(hash(key), key));
            });
        }
        let order = interleaved(&prepared);
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); prepared.len()];
        let mut live = self.live(&prepared);
        for (work, row) in order {
            live.step(work, row as usize);
            rows[work].push(row);
        }
        for ((prepared, columns), rows) in prepared.iter().zip(live.finish()).zip(&rows) {
            let order = (!rows.is_sorted()).then_some(rows.as_slice());
            self.give(prepared, columns, order, out);
        }
    }

    fn advance(&mut self, watermark: EventTime, _out: &mut Outputs) {
        // The largest time says that the input has ended, not that a time has come: the state stays as it is.
        if watermark > self.horizon.watermark && watermark < EventTime::MAX {
            self.horizon.advance(watermark, &self.definition.frame);
        }
        let oldest = self.horizon.watermark.saturating_sub(self.definition.ttl);
        self.state
            .sweep_after(std::mem::take(&mut self.updates), |_, entity| entity.changed > 0 || entity.newest > oldest);
    }

    fn close_epoch(&mut self, _epoch: u64, out: &mut Outputs) {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return;
        }
        let mut keys = StringBuilder::with_capacity(changed.len(), changed.len() * 16);
        let mut answers = Answers::new(&self.definition, changed.len());
        let mut rows = Vec::with_capacity(changed.len());
        let mut valid_until = Int64Builder::with_capacity(changed.len());
        for (place, row) in &changed {
            keys.append_value(String::from_utf8_lossy(self.state.key_at(*place)));
            let publish = |entity: &Entity, to: &mut Vec<u8>| steps::read(entity.newest, entity.newest, to);
            let entity = self.state.at_mut_telling(*place, publish);
            entity.changed = 0;
            let time = entity.newest;
            entity.read(&self.definition.frame, time);
            answers.push(&self.definition, Some(entity), time);
            let ages_max = self.definition.as_of.iter().map(|lookup| lookup.age_max);
            valid_until.append_option(entity.changes_at(&self.definition.frame, time, ages_max));
            rows.push(Row { event_time: time, ..*row });
        }
        let mut columns: Vec<ArrayRef> = vec![Arc::new(keys.finish())];
        columns.extend(answers.finish(&self.definition));
        columns.push(Arc::new(valid_until.finish()));
        let records = RecordBatch::try_new(self.published.clone(), columns).expect("the answers follow the schema");
        out.give(self.ports.len(), Batch::new(records, rows));
    }

    fn save_changes(&mut self, bytes: usize, give: &mut dyn FnMut(u16, Vec<u8>)) -> bool {
        self.state.save_some_changes(bytes, give)
    }

    fn load(&mut self, key_group: u16, bytes: &[u8]) -> Result<(), StateError> {
        let frame = &self.definition.frame;
        let take_steps = |entity: &mut Entity, steps: &[u8]| steps::take(frame, entity, steps);
        self.state.load_telling(key_group, bytes, |entity| entity.check(frame), take_steps)
    }

    fn load_groups(&mut self, groups: Groups, threads: usize) -> Result<(), StateError> {
        let frame = &self.definition.frame;
        let take_steps = |entity: &mut Entity, steps: &[u8]| steps::take(frame, entity, steps);
        self.state.load_groups(groups, threads, |entity| entity.check(frame), take_steps)
    }

    fn state_size(&self) -> (u64, u64) {
        self.state.size(Entity::size_bytes)
    }
}

/// The rows of all batches as (batch, row) in the order of event time; of one time updates before reads, then by origin.
fn interleaved(prepared: &[Prepared]) -> Vec<(usize, u32)> {
    let mut order = Vec::with_capacity(prepared.iter().map(|prepared| prepared.batch.len()).sum());
    for (work, prepared) in prepared.iter().enumerate() {
        for (row, origin) in prepared.batch.rows.iter().enumerate() {
            let Row { source, partition, offset, event_time, .. } = *origin;
            order.push((event_time, prepared.role, source, partition, offset, prepared.port, work, row as u32));
        }
    }
    order.sort_unstable();
    order.into_iter().map(|(.., work, row)| (work, row)).collect()
}
