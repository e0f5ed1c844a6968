//! What users were told, and what may be there after that.
//!
//! Whoever asks at the same time as somebody else may be served before or after them. So each attempt and each word counts
//! for the whole time from question to answer, and only what was over before something began is before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use harbor::store::Changes;
use tokio::time::Instant;

use super::{
    history::Beliefs,
    request::{Answer, binding_id, instance_id},
};

/// What is asked for: a service instance, or a binding of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    Instance(String),
    Binding(String, String),
}

impl Thing {
    pub fn instance(instance: usize) -> Self {
        Self::Instance(instance_id(instance).to_string())
    }

    pub fn binding(instance: usize, binding: usize) -> Self {
        Self::Binding(instance_id(instance).to_string(), binding_id(instance, binding).to_string())
    }

    /// The id of the service instance.
    fn of(&self) -> &str {
        match self {
            Self::Instance(id) | Self::Binding(id, _) => id,
        }
    }
}

/// What is asked of a node.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub node: usize,
    pub verb: &'static str,
}

/// What a request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    Make,
    Unmake,
    /// Gives a service instance this many connections. One that is made anew has what it was asked for with, too.
    Set(u32),
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// Nothing was done, for sure.
    Not,
    /// It may have been done, or may be done yet.
    Unknown,
}

/// The connections that every service instance is asked for with.
pub const FIRST_SETTING: u32 = 1000;

/// A request, from question to answer.
#[derive(Debug)]
struct Record {
    asked: Asked,
    thing: Thing,
    effect: Effect,
    began: Instant,
    /// None while it is under way.
    ended: Option<Instant>,
    outcome: Outcome,
    /// Whether the answer says that it is there.
    saw: Option<bool>,
    /// The port that the answer tells.
    port: Option<u16>,
}

impl Record {
    fn may_have(&self) -> bool {
        self.outcome != Outcome::Not
    }

    fn is_decided(&self) -> bool {
        self.ended.is_some() && self.outcome != Outcome::Unknown
    }

    /// Whether it was over before that moment.
    fn is_before(&self, moment: Instant) -> bool {
        self.ended.is_some_and(|ended| ended < moment)
    }
}

/// All requests of a history, and what was found to be wrong.
#[derive(Debug, Default)]
pub struct Ledger {
    records: Vec<Record>,
    journal: Vec<String>,
    began: Option<Instant>,
    /// How long what was given up may go on at the other end.
    grace: Duration,
    /// What users take to be there.
    believed: BTreeSet<Thing>,
    /// What was found to be wrong apart from the store.
    blamed: Vec<String>,
    tally: Tally,
}

/// How often which answer was given, and what else has happened how often.
pub type Tally = BTreeMap<String, usize>;

impl Beliefs for Ledger {
    fn has_instance(&self, instance: usize) -> bool {
        self.believed.contains(&Thing::instance(instance))
    }

    fn has_binding(&self, instance: usize, binding: usize) -> bool {
        self.believed.contains(&Thing::binding(instance, binding))
    }
}

/// A request in the ledger.
#[derive(Debug, Clone, Copy)]
pub struct Entry(usize);

impl Ledger {
    /// An empty one. What was given up may go on for `grace` at the other end.
    pub fn new(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    /// Notes what happens, for the reader of a failure.
    pub fn note(&mut self, what: impl fmt::Display) {
        let now = Instant::now();
        let at = now - *self.began.get_or_insert(now);
        self.journal.push(format!("{:>9.3} s  {what}", at.as_secs_f64()));
    }

    /// The whole history.
    pub fn journal(&self) -> String {
        self.journal.join("\n")
    }

    /// Notes what is wrong, for the next look at all.
    pub fn blame(&mut self, what: String) {
        self.blamed.push(what);
    }

    /// Counts what has happened.
    pub fn count(&mut self, what: impl Into<String>) {
        *self.tally.entry(what.into()).or_default() += 1;
    }

    /// Everything that was counted.
    pub fn tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// Notes a request that is made now.
    pub fn begin(&mut self, asked: Asked, thing: Thing, effect: Effect, what: impl fmt::Display) -> Entry {
        let entry = Entry(self.records.len());
        self.note(format_args!("#{} {what}", entry.0));
        let (outcome, began) = (Outcome::Unknown, Instant::now());
        self.records.push(Record { asked, thing, effect, began, ended: None, outcome, saw: None, port: None });
        entry
    }

    /// Notes its answer.
    pub fn end(&mut self, entry: Entry, answer: Answer) {
        let Answer { outcome, saw, port, kind, words } = answer;
        self.note(format_args!("#{} {words}", entry.0));
        self.count(kind);
        let late = if outcome == Outcome::Unknown { self.grace } else { Duration::ZERO };
        let record = &mut self.records[entry.0];
        (record.ended, record.outcome, record.saw, record.port) = (Some(Instant::now() + late), outcome, saw, port);
        let thing = record.thing.clone();
        match saw {
            Some(true) => drop(self.believed.insert(thing)),
            Some(false) => self.believed.retain(|known| {
                let goes_along = matches!(thing, Thing::Instance(_)) && known.of() == thing.of();
                *known != thing && !goes_along
            }),
            None => {}
        }
        self.count_meetings(entry);
    }

    /// Counts which requests about the same service instance were under way on another node at the same time; those of
    /// which both have an answer.
    fn count_meetings(&mut self, entry: Entry) {
        let own = &self.records[entry.0];
        let meets = |other: &&Record| {
            let same = other.thing.of() == own.thing.of() && other.asked.node != own.asked.node;
            let both_do = other.effect != Effect::None && own.effect != Effect::None;
            same && both_do && other.is_decided() && own.is_decided() && !other.is_before(own.began)
        };
        let pair = |other: &Record| {
            let (a, b) = (other.asked.verb.min(own.asked.verb), other.asked.verb.max(own.asked.verb));
            format!("{a} meets {b}")
        };
        let meetings = self.records.iter().filter(meets).map(pair).collect::<Vec<_>>();
        meetings.into_iter().for_each(|pair| self.count(pair));
    }

    /// Whether somebody may have done this meanwhile to what a request is about.
    pub fn is_disturbed(&self, entry: Entry, by: Effect) -> bool {
        let Record { thing, began, .. } = &self.records[entry.0];
        !self.none_since(thing, *began, |effect| effect == by)
    }

    /// The requests that have no answer yet.
    pub fn open(&self) -> Vec<usize> {
        let open = self.records.iter().enumerate().filter(|(_, record)| record.ended.is_none());
        open.map(|(number, _)| number).collect()
    }

    /// What in the store, which was read at one moment after `read_from`, is not what users were told.
    pub fn contradictions(&self, all: &Changes, read_from: Instant) -> Vec<String> {
        let mut wrong = self.blamed.clone();
        let ports = all.instances.iter().map(|instance| (&instance.pool, instance.port)).collect::<BTreeSet<_>>();
        if ports.len() < all.instances.len() {
            wrong.push("two service instances have one port".to_owned());
        }
        let ids = all.instances.iter().map(|instance| &instance.id).collect::<BTreeSet<_>>();
        if let Some(orphan) = all.bindings.iter().find(|binding| !ids.contains(&binding.service_instance_id)) {
            wrong.push(format!("the binding {} is of no service instance", orphan.id));
        }
        let instances = all.instances.iter().map(|instance| Thing::Instance(instance.id.to_string()));
        let bindings = all.bindings.iter().map(|b| Thing::Binding(b.service_instance_id.to_string(), b.id.to_string()));
        let there = instances.chain(bindings).collect::<BTreeSet<_>>();
        let asked_for = self.records.iter().map(|record| &record.thing).collect::<BTreeSet<_>>();
        for thing in asked_for.union(&there.iter().collect()) {
            wrong.extend(self.presence(thing, there.contains(thing), read_from));
        }
        for instance in &all.instances {
            let thing = Thing::Instance(instance.id.to_string());
            wrong.extend(self.port(&thing, instance.port));
            wrong.extend(self.settings(&thing, instance.settings.max_connections));
        }
        wrong
    }

    /// The requests for a thing; a service instance takes its bindings along.
    fn about<'a>(&'a self, thing: &'a Thing) -> impl Iterator<Item = (usize, &'a Record)> {
        self.records.iter().enumerate().filter(move |(_, record)| match (thing, &record.thing) {
            (Thing::Binding(of, _), Thing::Instance(id)) => {
                of == id && (record.effect == Effect::Unmake || record.saw == Some(false))
            }
            (thing, about) => thing == about,
        })
    }

    /// Whether nobody can have had this effect at or after that moment.
    fn none_since(&self, thing: &Thing, moment: Instant, has_effect: impl Fn(Effect) -> bool) -> bool {
        self.about(thing).all(|(_, other)| !has_effect(other.effect) || !other.may_have() || other.is_before(moment))
    }

    fn presence(&self, thing: &Thing, is_there: bool, read_from: Instant) -> Option<String> {
        let words = || self.about(thing).filter(|(_, record)| record.is_before(read_from));
        if is_there {
            if !self.about(thing).any(|(_, record)| record.effect == Effect::Make && record.may_have()) {
                return Some(format!("{thing:?} is there, and nobody can have made it"));
            }
            let gone = words().find(|(_, record)| {
                record.saw == Some(false) && self.none_since(thing, record.began, |effect| effect == Effect::Make)
            });
            return gone.map(|(number, _)| format!("{thing:?} is there, and #{number} says that it is not"));
        }
        let there = words().find(|(_, record)| {
            record.saw == Some(true) && self.none_since(thing, record.began, |effect| effect == Effect::Unmake)
        });
        there.map(|(number, _)| format!("{thing:?} is not there, and #{number} says that it is"))
    }

    /// A port that was told stays until nobody has it any more.
    fn port(&self, thing: &Thing, port: u16) -> Option<String> {
        let other = self.records.iter().enumerate().find(|(_, record)| {
            let told = match &record.thing {
                Thing::Binding(of, _) => Thing::Instance(of.clone()) == *thing,
                of => of == thing,
            };
            told && record.port.is_some_and(|told| told != port)
                && self.none_since(thing, record.began, |effect| effect == Effect::Unmake)
        });
        other.map(|(number, told)| format!("{thing:?} has the port {port}, and #{number} told {:?}", told.port))
    }

    /// What was set last holds: nothing that was over before something else was set.
    fn settings(&self, thing: &Thing, found: Option<u32>) -> Option<String> {
        let is_later = |other: &Record, than: Instant| other.began > than && other.outcome == Outcome::Done;
        let sets = |record: &Record| matches!(record.effect, Effect::Set(_)) && record.may_have();
        let possible = |record: &Record| {
            let over = record.ended.unwrap_or_else(|| Instant::now() + self.grace);
            !self.about(thing).any(|(_, other)| sets(other) && is_later(other, over))
        };
        let is_possible = self.about(thing).any(|(_, record)| match record.effect {
            Effect::Set(value) => record.may_have() && Some(value) == found && possible(record),
            Effect::Make => record.may_have() && Some(FIRST_SETTING) == found && possible(record),
            _ => false,
        });
        (!is_possible).then(|| format!("{thing:?} has {found:?} connections, which somebody has set otherwise since"))
    }
}
