//! Feature groups and the vectors that read them.
//!
//! All vectors read groups in one order, that of the plan, so that no two groups wait for each other; a vector's columns
//! are put back into the order that was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use millstream_operators::error::ConfigError;
use millstream_operators::expressions::Expression;
use millstream_operators::features::{FeatureGroup, GroupConfig, Reader, Shape};

use super::planner::{Planner, columns, digest, type_name};
use super::{GroupPlan, Node, ReaderPlan, StreamPlan};
use crate::online::{Kind, Packed};
use crate::topology::{Join, Vector};

/// The groups while their readers are being collected.
#[derive(Default)]
pub(super) struct Groups {
    instances: Vec<Instance>,
    by_name: BTreeMap<String, Group>,
}

/// A planned group.
struct Group {
    config: GroupConfig,
    input: usize,
    key: Vec<usize>,
    /// The fields of its features, without the group's name in front.
    features: Vec<Field>,
    made: Made,
    /// Its place in the order in which groups are read.
    rank: usize,
    /// Its instances, in [`Groups::instances`]; the first is there even if nothing reads it.
    instances: Vec<usize>,
}

/// What the state of a group follows from, as digests.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// The rows that feed it, its keys, and how windows are cut.
    rows: String,
    /// Each feature, in the order of their columns; names are not part of it.
    features: Vec<String>,
    /// What is aggregated, by value and condition as they are written.
    measures: BTreeMap<(Option<String>, Option<String>), String>,
    /// The columns of the lookups.
    lookups: Vec<String>,
}

impl GroupPlan {
    /// Digest of the rows that feed it, its keys and its tiles.
    pub fn fed(&self) -> &str {
        &self.made.rows
    }

    /// What stands where in its state.
    pub fn shape(&self) -> Shape {
        let measure = |of: Option<&str>, filter: Option<&str>| {
            let written = (of.map(String::from), filter.map(String::from));
            self.made.measures.get(&written).cloned().unwrap_or_default()
        };
        self.operator().shape(measure, &self.made.lookups)
    }

    /// What stands where in its served features.
    pub fn served(&self) -> Vec<Packed> {
        let fields = self.operator().features().into_iter().zip(&self.made.features);
        let packed =
            |(field, made): (Field, &String)| Some(Packed { made: made.clone(), kind: Kind::of(field.data_type())? });
        fields.filter_map(packed).collect()
    }
}

/// What the state of a group that is fed by `input` follows from. How long a silent key is kept and whether features are
/// served are not part of it, nor are names.
fn made(input: &StreamPlan, key: &[usize], config: &GroupConfig) -> Made {
    let (lineage, schema) = (&input.lineage, &input.schema);
    // What does not compile has been refused; a text alone is as good then.
    let sql = |text: &Option<String>| {
        let text = text.as_ref()?;
        Some(Expression::compile(text, schema).map_or_else(|_| text.clone(), |compiled| lineage.expression(&compiled)))
    };
    let (mut features, mut measures) = (Vec::new(), BTreeMap::new());
    for aggregate in &config.aggregates {
        let measure = digest(&sql(&aggregate.of), &sql(&aggregate.filter));
        measures.insert((aggregate.of.clone(), aggregate.filter.clone()), measure.clone());
        for window in &aggregate.windows {
            features.extend(aggregate.ops.iter().map(|op| digest(&measure, &(op, window))));
        }
    }
    let mut lookups = Vec::new();
    for as_of in config.as_of.values() {
        let column = schema.index_of(&as_of.column).map(|at| lineage.columns(&[at])).unwrap_or_default();
        let column = digest(&column, &());
        features.push(digest(&column, &as_of.max_age));
        lookups.push(column);
    }
    Made { rows: lineage.node(key, &config.tiles), features, measures, lookups }
}

/// An instance of a group.
struct Instance {
    group: String,
    name: String,
    /// What stands in front of the names of its features: the same for all of its readers.
    prefix: String,
    readers: Vec<(ReaderPlan, Reader)>,
}

/// A join of a vector, checked.
struct Read<'t> {
    join: &'t Join,
    /// Index in the vector's list.
    written: usize,
    rank: usize,
    /// What stands in front of its features' names.
    prefix: &'t str,
    on: Vec<usize>,
}

impl<'t> Planner<'t> {
    /// Plans a feature group, without its readers.
    pub(super) fn group(&mut self, name: &'t str) -> Option<()> {
        let config = &self.topology.features[name];
        let at = format!("features.{name}");
        let input = *self.by_name.get(&config.from)?;
        let schema = self.streams[input].schema.clone();
        let group = match FeatureGroup::compile(name, config, &schema, &[]) {
            Ok(group) => group,
            Err(errors) => {
                self.refuse(errors.into_iter().map(|error| error.under(&at)));
                return None;
            }
        };
        let key: Vec<usize> = config.key.iter().filter_map(|column| schema.index_of(column).ok()).collect();
        let made = made(&self.streams[input], &key, config);
        let rank = self.groups.by_name.len();
        let features = group.features().into_iter().map(|field| {
            let bare = field.name().strip_prefix(&format!("{name}.")).unwrap_or(field.name()).to_string();
            field.with_name(bare)
        });
        let features = features.collect();
        let instances = vec![self.groups.instance(name, name)];
        let group = Group { config: config.clone(), input, key, features, made, rank, instances };
        self.groups.by_name.insert(name.to_string(), group);
        Some(())
    }

    /// Plans a vector: a read of each group, then what is derived.
    pub(super) fn vector(&mut self, name: &'t str) -> Option<()> {
        let vector = &self.topology.vectors[name];
        let at = format!("vectors.{name}");
        let spine = *self.by_name.get(&vector.spine)?;
        let mut reads = self.reads(vector, spine, &at)?;
        reads.sort_by_key(|read| read.rank);
        let (mut stream, mut features) = (spine, vec![Vec::new(); reads.len()]);
        for read in &reads {
            let added = self.read(name, vector, stream, read);
            stream = self.streams.len() - 1;
            features[read.written] = added;
        }
        let own = self.streams[spine].schema.fields().iter().map(|field| field.name().clone());
        let order: Vec<String> = own.chain(features.into_iter().flatten()).collect();
        let found: Vec<&String> = self.streams[stream].schema.fields().iter().map(|field| field.name()).collect();
        let in_order = found.iter().zip(&order).all(|(found, wanted)| *found == wanted);
        if vector.derive.is_empty() && in_order && !reads.is_empty() {
            // The last read is the vector already.
            self.streams[stream].name = name.to_string();
            self.by_name.insert(name.to_string(), stream);
            return Some(());
        }
        let select = order.into_iter().chain(vector.derive.keys().cloned()).collect();
        self.derived(name, stream, &vector.derive, select, &at)
    }

    /// The joins of a vector, checked and typed; `None` if one is wrong.
    fn reads(&mut self, vector: &'t Vector, spine: usize, at: &str) -> Option<Vec<Read<'t>>> {
        let mut reads: Vec<Read> = Vec::new();
        let mut sound = true;
        for (written, join) in vector.join.iter().enumerate() {
            let at = format!("{at}.join[{written}]");
            let prefix = join.name.as_deref().unwrap_or(&join.features);
            let mut errors = Vec::new();
            errors.extend(
                super::names::refusal(prefix).filter(|_| join.name.is_some()).map(|e| e.under(&format!("{at}.as"))),
            );
            if reads.iter().any(|read| read.prefix == prefix) {
                let hint =
                    format!("tell the reads apart by `as`, as in `{{ features: {}, as: {prefix}_2 }}`", join.features);
                let message = format!("a read named `{prefix}` stands above already");
                errors.push(ConfigError::new(&at, message).with_hint(Some(hint)));
            }
            let group = self.groups.by_name.get(&join.features)?;
            let on = self.key_columns(group, join, spine, &at);
            errors.extend(self.exclude_self_error(group, vector, join, &at));
            let rank = group.rank;
            match on {
                Ok(on) if errors.is_empty() => reads.push(Read { join, written, rank, prefix, on }),
                Ok(_) => sound = false,
                Err(wrong) => errors.extend(wrong),
            }
            sound &= errors.is_empty();
            self.refuse(errors);
        }
        sound.then_some(reads)
    }

    /// Why `exclude_self` makes no sense, if it does not: only rows that feed a group are in it.
    fn exclude_self_error(&self, group: &Group, vector: &Vector, join: &Join, at: &str) -> Option<ConfigError> {
        let (name, fed_by, spine) = (&join.features, &group.config.from, &vector.spine);
        let at = format!("{at}.exclude_self");
        if !join.exclude_self || feeds(group, vector, join) {
            return None;
        }
        if spine != fed_by {
            let message = format!("`{name}` is fed by `{fed_by}`, so the rows of `{spine}` are not in it");
            let hint = format!("leave `exclude_self` out, or take `{fed_by}` as the spine");
            return Some(ConfigError::new(at, message).with_hint(Some(hint)));
        }
        let message = format!(
            "a row stands in `{name}` under its `{}`, and is read by another column here",
            group.config.key.join(", ")
        );
        Some(ConfigError::new(at, message).with_hint(Some("leave `exclude_self` out".to_string())))
    }

    /// The columns of the spine that hold a group's key, of the same types.
    fn key_columns(&self, group: &Group, join: &Join, spine: usize, at: &str) -> Result<Vec<usize>, Vec<ConfigError>> {
        let (schema, fed) = (&self.streams[spine].schema, &self.streams[group.input].schema);
        let key = &group.config.key;
        let on_hint = || Some(format!("name the columns that hold it: `on: [{}]`", key.join(", ")));
        if join.on.is_empty() {
            let missing = key.iter().find(|column| schema.index_of(column).is_err());
            if let Some(missing) = missing {
                let message = format!(
                    "`{}` is keyed by `{missing}`, which `{}` does not have",
                    join.features, self.streams[spine].name
                );
                return Err(vec![
                    ConfigError::new(format!("{at}.features"), message)
                        .with_hint(Some("name the column that holds it: `on: [column]`".to_string())),
                ]);
            }
        } else if join.on.len() != key.len() {
            let message = format!(
                "the key of `{}` has {} columns ({}), `on` names {}",
                join.features,
                key.len(),
                key.join(", "),
                join.on.len()
            );
            return Err(vec![ConfigError::new(format!("{at}.on"), message).with_hint(on_hint())]);
        }
        let (names, path) = match join.on.is_empty() {
            true => (key, format!("{at}.features")),
            false => (&join.on, format!("{at}.on")),
        };
        let found = columns(schema, names, &path)?;
        let wrong = found.iter().zip(&group.key).filter_map(|(own, of_group)| {
            let (own, of_group) = (schema.field(*own), fed.field(*of_group));
            let message = || {
                let own = format!("`{}` is a {}", own.name(), type_name(own.data_type()));
                format!(
                    "{own}, the key `{}` of `{}` is a {}",
                    of_group.name(),
                    join.features,
                    type_name(of_group.data_type())
                )
            };
            let (a, b) = (own.data_type(), of_group.data_type());
            let alike = a == b || (a.is_integer() && b.is_integer());
            (!alike).then(|| ConfigError::new(path.clone(), message()))
        });
        let wrong: Vec<ConfigError> = wrong.collect();
        if wrong.is_empty() { Ok(found) } else { Err(wrong) }
    }

    /// Adds the stream of a read; gives the names of the columns it adds.
    fn read(&mut self, vector_name: &str, vector: &Vector, input: usize, read: &Read) -> Vec<String> {
        let group_name = read.join.features.as_str();
        let group = &self.groups.by_name[group_name];
        let feeds = feeds(group, vector, read.join);
        let renamed = |f: &Field| Field::new(format!("{}.{}", read.prefix, f.name()), f.data_type().clone(), true);
        let added: Vec<Field> = group.features.iter().map(renamed).collect();
        let names: Vec<String> = added.iter().map(|field| field.name().clone()).collect();
        let spine = self.streams[input].schema.clone();
        let schema = beside(&spine, added);
        let lineage = &self.streams[input].lineage;
        let how = digest(&lineage.columns(&read.on), &read.join.exclude_self);
        let columns = names.iter().zip(&group.made.features);
        let columns = columns.map(|(name, made)| (name.clone(), digest(&(&how, &group.made.rows), made)));
        let lineage = lineage.beside(columns);
        let group = self.groups.free_instance(group_name, vector_name, read.prefix, feeds);
        let reader = self.groups.instances[group].readers.len();
        let node = Node::Read { group, reader, input };
        let output = self.add(&format!("{vector_name}.{}", read.prefix), schema, node, lineage);
        let plan = ReaderPlan { input, output, feeds, on: read.on.clone() };
        let on = read.on.iter().map(|column| spine.field(*column).name().clone()).collect();
        let reader = Reader { name: vector_name.to_string(), spine, on, exclude_self: read.join.exclude_self, feeds };
        self.groups.instances[group].readers.push((plan, reader));
        names
    }
}

/// Whether the rows of a vector's spine are those that feed a group, and read it by the key under which they stand in it.
fn feeds(group: &Group, vector: &Vector, join: &Join) -> bool {
    vector.spine == group.config.from && (join.on.is_empty() || join.on == group.config.key)
}

impl Groups {
    /// Adds an instance of a group.
    fn instance(&mut self, group: &str, prefix: &str) -> usize {
        let earlier = self.instances.iter().filter(|instance| instance.group == group).count();
        let name = if earlier == 0 { group.to_string() } else { format!("{group}#{}", earlier + 1) };
        self.instances.push(Instance {
            group: group.to_string(),
            name,
            prefix: prefix.to_string(),
            readers: Vec::new(),
        });
        self.instances.len() - 1
    }

    /// An instance that `vector` can read under `prefix`: one that it does not read yet and, for a reader that also feeds
    /// it, one that nothing feeds yet.
    fn free_instance(&mut self, group: &str, vector: &str, prefix: &str, feeds: bool) -> usize {
        let free = |instance: &Instance| {
            let mut readers = instance.readers.iter();
            let fits = instance.readers.is_empty() || instance.prefix == prefix;
            fits && !readers.any(|(plan, reader)| reader.name == vector || (feeds && plan.feeds))
        };
        let known = self.by_name.get(group).map(|group| group.instances.clone()).unwrap_or_default();
        if let Some(found) = known.into_iter().find(|instance| free(&self.instances[*instance])) {
            self.instances[found].prefix = prefix.to_string();
            return found;
        }
        let added = self.instance(group, prefix);
        self.by_name.entry(group.to_string()).and_modify(|group| group.instances.push(added));
        added
    }

    /// The groups with all their readers, compiled once to be sure that they can be. The instances stand in the order in
    /// which they were made, which is that of the nodes.
    pub fn finish(self, streams: &[StreamPlan], errors: &mut Vec<ConfigError>) -> Vec<GroupPlan> {
        let Groups { instances, by_name } = self;
        let mut plans = Vec::new();
        for instance in instances {
            let group = &by_name[&instance.group];
            let first = instance.name == instance.group;
            let (plans_of_readers, readers) = instance.readers.into_iter().unzip();
            let plan = GroupPlan {
                online: group.config.online && first,
                input: group.input,
                key: group.key.clone(),
                readers: plans_of_readers,
                hash: digest(&group.made.rows, &group.made.features),
                made: group.made.clone(),
                config: GroupConfig { online: group.config.online && first, ..group.config.clone() },
                prefix: instance.prefix,
                input_schema: streams[group.input].schema.clone(),
                compiled_readers: readers,
                name: instance.name,
            };
            match plan.compile() {
                Ok(_) => plans.push(plan),
                Err(wrong) => errors.extend(wrong),
            }
        }
        plans
    }
}

/// `schema` with `fields` on its right.
fn beside(schema: &Schema, fields: Vec<Field>) -> SchemaRef {
    let own = schema.fields().iter().map(|field| field.as_ref().clone());
    Arc::new(Schema::new(own.chain(fields).collect::<Vec<_>>()))
}
