//! What the store asks of an SQL engine: transactions in which statements run. [`super::relational`] says what is done in
//! them, once for all engines.

use std::{fmt, os::fd::OwnedFd};

use sqlx::{FromRow, postgres::PgRow, sqlite::SqliteRow};

use super::{Feed, Hint, text::Text};
use crate::model::{Revision, Timestamp};

/// What calls to an engine return; rows that cannot be read are its decode errors.
pub(super) type Sql<T> = Result<T, sqlx::Error>;

/// An SQL engine with its connections to one database.
pub(super) trait Engine: fmt::Debug + Send + Sync + 'static {
    /// What it is called in messages.
    const NAME: &'static str;

    /// Whether several nodes can share a database.
    const SERVES_MANY: bool;

    /// A transaction on a connection of its own.
    type Session: Session;

    /// Begins to read; all that is read is of one revision.
    fn read(&self) -> impl Future<Output = Sql<Self::Session>> + Send;

    /// Begins to write, once no other transaction does: of those that write one runs at a time, on all nodes.
    fn write(&self) -> impl Future<Output = Sql<Self::Session>> + Send;

    /// Begins to write what one row holds and nothing else depends on, beside others that write. It may be lost when the
    /// machine of the database fails within the second.
    fn note(&self) -> impl Future<Output = Sql<Self::Session>> + Send {
        self.write()
    }

    /// Hears the hints of all commits from now on.
    fn feed(&self) -> impl Future<Output = Sql<Box<dyn Feed>>> + Send;

    /// [`Store::losses`](super::Store::losses).
    fn losses(&self) -> u64 {
        0
    }

    /// [`Store::hand_over`](super::Store::hand_over).
    fn hand_over(&self) -> impl Future<Output = Sql<Option<OwnedFd>>> + Send {
        async { Ok(None) }
    }

    /// [`Store::take_back`](super::Store::take_back).
    fn take_back(&self) -> impl Future<Output = Sql<()>> + Send {
        async { Ok(()) }
    }

    /// Ends all connections. What begins after it fails.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// A transaction. Dropped before its end it changes nothing, but costs its connection: whoever knows that nothing is to be
/// changed calls [`Session::roll_back`].
pub(super) trait Session: Send {
    /// The rows that a statement finds.
    fn rows<R: Row>(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Sql<Vec<R>>> + Send;

    /// Does what a statement says; how many rows it touched.
    fn execute(&mut self, statement: &'static str, values: &[Value<'_>]) -> impl Future<Output = Sql<u64>> + Send;

    /// Ends it; what was changed is durable, and whoever hears a feed is given `hint`.
    fn commit(self, hint: Option<Hint>) -> impl Future<Output = Sql<()>> + Send;

    /// Ends it; nothing was changed.
    fn roll_back(self) -> impl Future<Output = Sql<()>> + Send;

    /// The first row, if there is one.
    fn row<R: Row>(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Sql<Option<R>>> + Send {
        async move { Ok(self.rows(statement, values).await?.into_iter().next()) }
    }

    /// The number that a statement always finds.
    fn number(&mut self, statement: &'static str, values: &[Value<'_>]) -> impl Future<Output = Sql<i64>> + Send {
        async move { self.row::<(i64,)>(statement, values).await?.map(|(number,)| number).ok_or(sqlx::Error::RowNotFound) }
    }

    /// The text that a statement finds, if it does.
    fn text(
        &mut self,
        statement: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Sql<Option<String>>> + Send {
        async move { Ok(self.row::<(Text,)>(statement, values).await?.map(|(text,)| text.into())) }
    }
}

/// What every engine can read a row into.
pub(super) trait Row: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl<T> Row for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

/// What is written into a column or compared with one. There are two types of columns: TEXT and BIGINT.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Text(Option<&'a str>),
    Number(Option<i64>),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a, T: AsRef<str>> From<&'a Option<T>> for Value<'a> {
    fn from(text: &'a Option<T>) -> Self {
        Self::Text(text.as_ref().map(AsRef::as_ref))
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(Some(number))
    }
}

impl From<u16> for Value<'_> {
    fn from(number: u16) -> Self {
        Self::Number(Some(number.into()))
    }
}

impl From<Option<u16>> for Value<'_> {
    fn from(number: Option<u16>) -> Self {
        Self::Number(number.map(i64::from))
    }
}

/// A count.
impl From<u64> for Value<'_> {
    fn from(count: u64) -> Self {
        Self::Number(Some(super::row::count_to_column(count)))
    }
}

/// A flag is 0 or 1.
impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        Self::Number(Some(flag.into()))
    }
}

impl From<Timestamp> for Value<'_> {
    fn from(moment: Timestamp) -> Self {
        Self::Number(Some(moment.0))
    }
}

impl From<Revision> for Value<'_> {
    fn from(revision: Revision) -> Self {
        Self::Number(Some(super::row::revision_to_column(revision)))
    }
}

/// The values of a statement, in the order of its placeholders.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::store::engine::Value::from($value)),*] };
}
pub(super) use values;
