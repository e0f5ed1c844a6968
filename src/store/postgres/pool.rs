//! Connections that are used again, and calls that end.
//!
//! A call is given up when nothing has come back for so long as [`Target`] says: a server that is stopped, cut off or hangs shows
//! itself by silence, one that is merely busy does not. Calls that wait for a connection are given up with the one that
//! has it, so nobody stands in a queue of which each waits that long in turn. When the server says nothing to anybody, all
//! calls are given up at once, and for a while nobody asks: whoever makes several in a row waits for one of them.
//!
//! A connection comes back only when its transaction has ended; any other is closed, and the server rolls back what was
//! on it. Its next transaction begins with the test of whether it still lives, at no cost.
//!
//! sqlx has a pool too. It keeps connecting to a server that refuses until its time-out, and then does not say why.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use sqlx::{Arguments as _, AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgArguments};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use super::{
    Target, feed,
    link::{KEEPALIVES, Losses, Silence, is_loss, silent, silent_to_others, timed_out},
};
use crate::store::{
    Hint,
    engine::{Row, Session, Sql, Value},
    text,
};

/// The longest wait for a connection while others are answered.
const QUEUE_WITHIN: Duration = Duration::from_secs(10);

/// Connections to one database.
#[derive(Debug)]
pub(super) struct Pool {
    target: Target,
    losses: Losses,
    silence: Arc<Silence>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<PgConnection>>,
    /// Tells those that wait for a connection that one of them got no answer.
    outage: Notify,
}

/// A connection in a transaction.
#[derive(Debug)]
pub(in crate::store) struct Lease {
    pool: Arc<Pool>,
    connection: PgConnection,
    permit: OwnedSemaphorePermit,
}

impl Pool {
    /// At most `size` connections, made when they are needed. Pools of one server share its `silence`.
    pub(super) fn new(target: Target, size: usize, losses: Losses, silence: Arc<Silence>) -> Self {
        let permits = Arc::new(Semaphore::new(size));
        Self { target, losses, silence, permits, idle: Mutex::default(), outage: Notify::new() }
    }

    /// Begins a transaction by `statement`.
    pub(super) async fn begin(self: &Arc<Self>, statement: &'static str) -> Sql<Lease> {
        let permit = self.permit().await?;
        let connection = self.heard(self.begun(statement)).await?;
        Ok(Lease { pool: Arc::clone(self), connection, permit })
    }

    /// Ends the connections that nobody uses; the others end with their transactions.
    pub(super) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        let farewell = async {
            for connection in idle {
                // It may have died long ago.
                let _ = connection.close().await;
            }
        };
        let _ = timeout(self.target.answer_within, farewell).await;
    }

    async fn permit(&self) -> Sql<OwnedSemaphorePermit> {
        let outage = self.outage.notified();
        tokio::select! {
            // In this order: the permit of the call that got no answer comes free at the same moment.
            biased;
            () = outage => Err(silent_to_others()),
            permit = Arc::clone(&self.permits).acquire_owned() => permit.map_err(|_| sqlx::Error::PoolClosed),
            () = sleep(QUEUE_WITHIN) => {
                Err(timed_out(format!("no connection to PostgreSQL was free for {QUEUE_WITHIN:?}")))
            }
        }
    }

    /// A connection on which `statement` has begun a transaction: one that has rested, or a new one.
    async fn begun(&self, statement: &'static str) -> Sql<PgConnection> {
        loop {
            let rested = self.idle().pop();
            let (mut connection, is_new) = match rested {
                Some(connection) => (connection, false),
                None => (self.connect().await?, true),
            };
            match connection.execute(statement).await {
                Ok(_) => return Ok(connection),
                // The server was restarted, or has ended the connection. So it has the others that rest, probably; each
                // is taken out here, so this ends.
                Err(error) if !is_new && is_loss(&error) => self.losses.add(),
                Err(error) => return Err(error),
            }
        }
    }

    async fn connect(&self) -> Sql<PgConnection> {
        let mut connection = self.target.connect().await?;
        // The wait for a lock ends before it is taken for silence: the message is the better one. Before that ends whoever
        // has the lock and says nothing, so that those who wait get it.
        let quarter = self.target.answer_within.as_millis() / 4;
        let bounds = format!(
            "SET statement_timeout = '10s'; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}",
            3 * quarter,
            2 * quarter
        );
        connection.execute(AssertSqlSafe(format!("{KEEPALIVES}; {bounds}"))).await?;
        Ok(connection)
    }

    /// The outcome of `answer`, or an error when it does not come.
    async fn heard<T>(&self, answer: impl Future<Output = Sql<T>>) -> Sql<T> {
        let (asked, answer_within, fallen) = (Instant::now(), self.target.answer_within, self.silence.fallen());
        if self.silence.lasts() {
            return Err(silent_to_others());
        }
        let given_up = tokio::select! {
            biased;
            outcome = answer => {
                match &outcome {
                    // A connection that was refused, or broke, is no answer.
                    Err(sqlx::Error::Io(_)) => {}
                    _ => self.silence.end(),
                }
                return outcome.inspect_err(|error| {
                    if is_loss(error) {
                        self.losses.add();
                    }
                });
            }
            () = fallen => silent_to_others(),
            () = sleep(answer_within) => {
                self.silence.begin(asked, answer_within / 2);
                silent(answer_within)
            }
        };
        self.losses.add();
        // Those that rest lead to the same server.
        self.idle().clear();
        self.outage.notify_waiters();
        Err(given_up)
    }

    fn rest(&self, connection: PgConnection) {
        if !self.permits.is_closed() {
            self.idle().push(connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<PgConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    async fn end(mut self, statement: &'static str) -> Sql<()> {
        self.pool.heard(self.connection.execute(statement)).await?;
        let Self { pool, connection, permit } = self;
        pool.rest(connection);
        drop(permit);
        Ok(())
    }
}

impl Session for Lease {
    async fn rows<R: Row>(&mut self, statement: &'static str, values: &[Value<'_>]) -> Sql<Vec<R>> {
        let mut found = sqlx::query_as_with::<_, R, _>(statement, arguments(values)?).fetch(&mut self.connection);
        let mut rows = Vec::new();
        while let Some(row) = self.pool.heard(found.try_next()).await? {
            rows.push(row);
        }
        Ok(rows)
    }

    async fn execute(&mut self, statement: &'static str, values: &[Value<'_>]) -> Sql<u64> {
        let query = sqlx::query_with(statement, arguments(values)?);
        Ok(self.pool.heard(query.execute(&mut self.connection)).await?.rows_affected())
    }

    async fn commit(self, hint: Option<Hint>) -> Sql<()> {
        self.end(match hint {
            None => "COMMIT",
            Some(hint) => feed::commit_with(hint),
        })
        .await
    }

    async fn roll_back(self) -> Sql<()> {
        self.end("ROLLBACK").await
    }
}

fn arguments(values: &[Value<'_>]) -> Sql<PgArguments> {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Text(text) => arguments.add(text.map(text::to_postgres)),
            Value::Number(number) => arguments.add(number),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}
