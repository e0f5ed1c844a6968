//! Reading a section key by key, so that all problems are found at once and the known keys are told by the code that
//! reads them.

use std::{cell::RefCell, collections::BTreeSet};

use super::entry::{Entry, Origin, Problem, Table, Value};

/// What was found while reading.
#[derive(Debug, Default)]
pub struct Findings {
    problems: RefCell<BTreeSet<Problem>>,
    keys: RefCell<BTreeSet<String>>,
}

impl Findings {
    /// Adds a problem.
    pub fn add(&self, problem: Problem) {
        self.problems.borrow_mut().insert(problem);
    }

    /// All problems: by place, those of the environment last.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner().into_iter().collect()
    }

    /// Every key that was asked for, as `section.key`.
    pub fn keys(&self) -> BTreeSet<String> {
        self.keys.borrow().clone()
    }
}

/// One section while it is read. It may hold passwords: it has no debug output.
pub struct Section<'f> {
    /// `broker.tls`; empty for the whole file.
    path: String,
    at: Origin,
    table: Table,
    findings: &'f Findings,
    asked: Vec<&'static str>,
}

impl<'f> Section<'f> {
    /// The whole file.
    pub fn root(table: Table, at: Origin, findings: &'f Findings) -> Self {
        Self { path: String::new(), at, table, findings, asked: Vec::new() }
    }

    /// Where it is written.
    pub fn place(&self) -> Origin {
        self.at.clone()
    }

    /// Whether the key or section is written at all.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether the key comes from the environment.
    pub fn is_variable(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|entry| matches!(entry.at, Origin::Variable(_)))
    }

    /// The value of a key; `None` when it is not written, or not usable, which is a problem then.
    pub fn get<T>(&mut self, key: &'static str, read: impl FnOnce(&Entry) -> Result<T, Problem>) -> Option<T> {
        self.ask(key);
        self.findings.keys.borrow_mut().insert(self.path_of(key));
        self.read(key, read)
    }

    /// A section in this one; empty when it is not written.
    pub fn section(&mut self, key: &'static str) -> Section<'f> {
        self.ask(key);
        let (table, at) = match self.table.get(key) {
            None => (Table::new(), self.at.clone()),
            Some(Entry { value: Value::Table(table), key_at, .. }) => (table.clone(), key_at.clone()),
            Some(entry) => {
                self.add(key, entry.problem(format!("this is {}, but must be a section", entry.value.kind())));
                (Table::new(), entry.at.clone())
            }
        };
        self.child(self.path_of(key), table, at)
    }

    /// The sections in section `key`, whatever their names.
    pub fn named_sections(&mut self, key: &'static str) -> Vec<(String, Section<'f>)> {
        self.section(key).into_sections()
    }

    /// The sections in this one, whatever their names; anything else is a problem.
    pub fn into_sections(mut self) -> Vec<(String, Section<'f>)> {
        let mut found = Vec::new();
        for (name, entry) in std::mem::take(&mut self.table) {
            let path = self.path_of(&name);
            match entry.value {
                Value::Table(table) => found.push((name, self.child(path, table, entry.key_at))),
                other => self.findings.add(Problem {
                    at: entry.at,
                    message: format!("{path}: this is {}, but must be a section", other.kind()),
                }),
            }
        }
        found
    }

    /// What is in this section, whatever the names: a section of its own, or a value, which is the one key `key` of one
    /// then.
    pub fn into_sections_or(mut self, key: &'static str) -> Vec<(String, Section<'f>)> {
        let entries = std::mem::take(&mut self.table).into_iter().map(|(name, entry)| {
            let (path, at) = (self.path_of(&name), entry.key_at.clone());
            let table = match entry.value {
                Value::Table(table) => table,
                _ => Table::from([(key.to_owned(), entry)]),
            };
            (name, self.child(path, table, at))
        });
        entries.collect()
    }

    /// The sections of the list `key`; a variable has them as TOML.
    pub fn listed_sections(&mut self, key: &'static str) -> Vec<Section<'f>> {
        self.ask(key);
        let entries = self.read(key, |entry| match &entry.value {
            Value::List(entries) => Ok(entries.clone()),
            Value::Variable(text) => {
                let table = super::entry::parse(&format!("list = {text}"), |_| entry.at.clone());
                match table.ok().and_then(|mut table| table.remove("list").filter(|_| table.is_empty())) {
                    Some(Entry { value: Value::List(entries), .. }) => Ok(entries),
                    _ => Err(entry.problem("this must be a list of tables in TOML: [{ key = value, … }, …]")),
                }
            }
            other => Err(entry.problem(format!("this is {}, but must be a list of sections", other.kind()))),
        });
        let mut found = Vec::new();
        for entry in entries.unwrap_or_default() {
            match entry.value {
                Value::Table(table) => found.push(self.child(self.path_of(key), table, entry.at)),
                ref other => {
                    self.add(key, entry.problem(format!("this is {}, but must be a section", other.kind())));
                }
            }
        }
        found
    }

    /// Adds a problem of a key: at its place, or at the section's when it is not written.
    pub fn problem(&self, key: &str, message: impl Into<String>) {
        let at = self.table.get(key).map_or_else(|| self.at.clone(), |entry| entry.at.clone());
        self.add(key, Problem { at, message: message.into() });
    }

    /// Adds the problem that a key is missing; `advice` says what to write.
    pub fn missing(&self, key: &str, advice: &str) {
        let message = format!("{} is missing: {advice}", self.path_of(key));
        self.findings.add(Problem { at: self.at.clone(), message });
    }

    /// Adds a problem of the section as a whole.
    pub fn refuse(&self, message: impl Into<String>) {
        self.findings.add(Problem { at: self.at.clone(), message: message.into() });
    }

    /// Ends the section: keys that nobody asked for are problems.
    pub fn finish(mut self) {
        self.asked.sort_unstable();
        for (key, entry) in &self.table {
            if !self.asked.contains(&key.as_str()) {
                let place = if self.path.is_empty() { "a configuration".into() } else { format!("[{}]", self.path) };
                let known = self.asked.join(", ");
                let message = format!("{place} has no key {key:?}: it has {known}");
                self.findings.add(Problem { at: entry.key_at.clone(), message });
            }
        }
    }

    fn read<T>(&self, key: &str, read: impl FnOnce(&Entry) -> Result<T, Problem>) -> Option<T> {
        let entry = self.table.get(key)?;
        read(entry).map_err(|problem| self.add(key, problem)).ok()
    }

    fn ask(&mut self, key: &'static str) {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
    }

    fn child(&self, path: String, table: Table, at: Origin) -> Section<'f> {
        Section { path, at, table, findings: self.findings, asked: Vec::new() }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    /// A variable's name says which key is meant; a place in a file is easier to find with it.
    fn add(&self, key: &str, mut problem: Problem) {
        if !matches!(problem.at, Origin::Variable(_) | Origin::Setting(_)) {
            problem.message = format!("{}: {}", self.path_of(key), problem.message);
        }
        self.findings.add(problem);
    }
}
