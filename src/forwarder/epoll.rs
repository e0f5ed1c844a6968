//! The engine on epoll: one thread a core, each with its own connections and sessions.
//!
//! What a connection or a session does next is decided by cores without sockets ([`super::relay`],
//! [`super::sessions`]); the shells here make the system calls. Threads share listening sockets, limits and immutable
//! snapshots, nothing else.

mod barrier;
mod handover;
mod pipes;
mod tcp;
mod tools;
mod udp;
mod worker;

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use self::{
    barrier::Barrier,
    handover::{Desk, Desks},
    udp::{Imports, Share},
    worker::{Command, MAX_COMMANDS, Waker, Worker},
};
use super::{
    engine::{Closing, Engine, ExportedSession, Sockets},
    listener::Listener,
    shared::Shared,
    sockets::{DatagramSocket, Spread},
};
use crate::{
    backends::{Backend, Backends},
    model::{ServiceInstanceId, Transport},
};

pub(super) use self::tools::MAX_ADDRESSES;

/// The running threads.
pub(super) struct Epoll {
    workers: Vec<Handle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Handle {
    waker: Arc<Waker>,
    commands: SyncSender<Command>,
}

impl Epoll {
    /// Starts so many threads; `held`: as if after [`Engine::hold`].
    ///
    /// # Errors
    /// When threads and their descriptors cannot be had.
    pub(super) fn start(workers: usize, shared: &Arc<Shared>, backends: &Backends, held: bool) -> io::Result<Self> {
        // Made first: whatever fails from here on, dropping it ends the threads that run by then.
        let mut engine = Self { workers: Vec::with_capacity(workers), threads: Mutex::default() };
        let wakers = (0..workers).map(|_| Waker::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        let desks = wakers.iter().map(|waker| Desk::new(Arc::clone(waker))).collect::<Arc<[_]>>();
        for (number, waker) in wakers.iter().cloned().enumerate() {
            let (commands, orders) = sync_channel(MAX_COMMANDS);
            let desks = Desks::new(Arc::clone(&desks), number);
            let worker = Worker::new(Arc::clone(shared), desks, Arc::clone(&waker), orders, held)?;
            engine.workers.push(Handle { waker, commands });
            let thread = thread::Builder::new().name(format!("forward-{number}")).spawn(|| worker.run())?;
            engine.threads().push(thread);
        }
        backends.on_change(Box::new(move |id| wakers.iter().for_each(|waker| waker.backends_changed(id))));
        Ok(engine)
    }

    /// The worker that a UDP port begins with.
    fn owner(&self, listener: &Listener) -> usize {
        usize::from(listener.port) % self.workers.len()
    }

    /// Queues a command for all, to be done when they wake: thousands of ports are one errand.
    fn queue(&self, command: impl Fn() -> Command) {
        self.workers.iter().for_each(|worker| worker.queue(command()));
    }

    /// Queues a command for all and wakes them.
    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            worker.queue(command());
            worker.waker.wake();
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().expect("nothing panics while it holds the threads")
    }
}

impl Handle {
    /// A worker that has stopped needs no telling: it has nothing any more.
    fn queue(&self, command: Command) {
        if let Err(TrySendError::Full(command)) = self.commands.try_send(command) {
            self.waker.wake();
            let _ = self.commands.send(command);
        }
    }
}

impl Engine for Epoll {
    fn open(&self, listener: &Arc<Listener>, sockets: Sockets) {
        match sockets {
            Sockets::Tcp(sockets) => self.queue(|| Command::OpenTcp(Arc::clone(listener), Arc::clone(&sockets))),
            Sockets::Udp(sockets) => {
                // One worker has all its sessions, until it is spread: no flow is ever in two tables.
                self.workers[self.owner(listener)].queue(Command::OpenUdp(Arc::clone(listener), sockets));
            }
        }
    }

    fn spreads_over(&self) -> usize {
        self.workers.len()
    }

    fn spread(&self, listener: &Arc<Listener>, more: Vec<Arc<[DatagramSocket]>>, spread: Spread) {
        // From its owner on, whose socket was bound first.
        let owner = self.owner(listener);
        let workers = self.workers[owner..].iter().chain(&self.workers[..owner]);
        let workers = workers.map(|worker| Arc::clone(&worker.waker)).collect();
        let share = Share { spread, workers, place: 0 };
        self.workers[owner].queue(Command::ShareOut(listener.id.clone(), more, share));
    }

    fn close(&self, id: &ServiceInstanceId, transport: Transport, why: Closing) {
        self.queue(|| Command::Close(id.clone(), transport, why));
    }

    fn refresh(&self, id: Option<&ServiceInstanceId>) {
        self.queue(|| Command::Refresh(id.cloned()));
    }

    fn close_listeners(&self) {
        self.queue(|| Command::CloseListeners);
    }

    fn reopen_listeners(&self) {
        self.queue(|| Command::ReopenListeners);
    }

    fn end_flows(&self) {
        self.queue(|| Command::EndFlows);
    }

    fn settle(&self) {
        Barrier::wait(|barrier| self.tell(|| Command::Barrier(Arc::clone(barrier))));
    }

    fn hold(&self) {
        self.queue(|| Command::Hold);
        // All rest; then all have what was on its way from one to another.
        self.settle();
        self.settle();
    }

    fn go_on(&self) {
        self.queue(|| Command::GoOn);
        self.settle();
    }

    fn let_go_of_udp(&self) {
        self.queue(|| Command::LetGoOfUdp);
    }

    fn import_sessions(&self, sessions: Vec<(ExportedSession, Arc<Backend>)>) {
        let mut by_id = Imports::new();
        for session in sessions {
            by_id.entry(session.0.service_instance_id.clone()).or_default().push(session);
        }
        let imports = Arc::new(Mutex::new(by_id));
        self.queue(|| Command::Import(Arc::clone(&imports)));
        self.settle();
    }

    fn export_sessions(&self) -> Vec<ExportedSession> {
        let (reply, replies) = sync_channel(self.workers.len());
        self.tell(|| Command::Export(reply.clone()));
        drop(reply);
        replies.iter().flatten().collect()
    }

    fn has_failed(&self) -> bool {
        self.threads().iter().any(JoinHandle::is_finished)
    }

    fn stop(&self) -> bool {
        let threads = std::mem::take(&mut *self.threads());
        self.tell(|| Command::Stop);
        // All of them, whatever became of the first.
        let failed = threads.into_iter().filter_map(|thread| thread.join().err()).count();
        failed == 0
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        self.stop();
    }
}
