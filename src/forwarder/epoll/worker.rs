//! A worker: one thread, one epoll set, its own connections and sessions. Nothing in it ever blocks.
//!
//! A TCP connection lives in the worker that accepted it; a UDP listener with all its sessions in one worker. The
//! reconciler says what to serve ([`Command`]); changes of backends arrive as the ids of the service instances that are
//! concerned ([`Waker::backends_changed`]).

use std::{
    collections::HashSet,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, TryRecvError},
    },
    thread,
};

use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
};

use super::{
    super::{
        engine::{Closing, ExportedSession},
        listener::Listener,
        relay::Side,
        shared::Shared,
        sockets::DatagramSocket,
    },
    barrier::Barrier,
    handover::Desks,
    tcp::Tcp,
    tools::{Token, Tools},
    udp::{Imports, Mailbox, Share, Udp},
};
use crate::{
    model::{ServiceInstanceId, Transport},
    telemetry::metrics::{ConnectionEnd, SessionEnd},
};

/// Commands that wait for a worker; the reconciler waits when there are more.
pub(super) const MAX_COMMANDS: usize = 1024;
/// Events that are taken from the kernel at once.
const EVENTS_PER_TURN: usize = 256;
/// What the reconciler asks of a worker.
pub(super) enum Command {
    /// Accept from these sockets.
    OpenTcp(Arc<Listener>, Arc<[OwnedFd]>),
    /// Serve these sockets; only the worker that owns the listener gets this.
    OpenUdp(Arc<Listener>, Arc<[DatagramSocket]>),
    /// Share a UDP port with others, who get these sockets.
    ShareOut(ServiceInstanceId, Vec<Arc<[DatagramSocket]>>, Share),
    /// Let go of the sockets of one transport and end its flows.
    Close(ServiceInstanceId, Transport, Closing),
    /// Settings of this listener, or of all, have changed.
    Refresh(Option<ServiceInstanceId>),
    /// Let go of listening sockets and begin no sessions, but go on with what is open.
    CloseListeners,
    /// Begin sessions again.
    ReopenListeners,
    /// End what is open, and go on serving.
    EndFlows,
    /// Accept and receive nothing for now.
    Hold,
    /// Go on, if it is held.
    GoOn,
    /// Let go of UDP sockets and of the sessions on them, which another process has.
    LetGoOfUdp,
    /// Take those sessions out that are this worker's, and go on with them.
    Import(Arc<Mutex<Imports>>),
    /// Say when everything before has been done.
    Barrier(Arc<Barrier>),
    /// Hand out copies of all sessions.
    Export(SyncSender<Vec<ExportedSession>>),
    /// End everything.
    Stop,
}

/// Rouses a worker from another thread.
pub(super) struct Waker {
    descriptor: OwnedFd,
    /// Whose backends have changed. Bounded by the service instances that there are.
    changed: Mutex<HashSet<ServiceInstanceId>>,
    /// What others have for it; they wake it when they have put something in.
    pub mailbox: Mailbox,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { descriptor, changed: Mutex::default(), mailbox: Mailbox::default() })
    }

    /// There is something new.
    pub(super) fn wake(&self) {
        // Full means that it is awake.
        let _ = rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes());
    }

    /// A set or a phase has changed.
    pub(super) fn backends_changed(&self, id: &ServiceInstanceId) {
        let mut changed = self.changed.lock().expect("nothing panics while it holds the set");
        if !changed.contains(id) {
            changed.insert(id.clone());
            drop(changed);
            self.wake();
        }
    }

    fn take_changed(&self) -> HashSet<ServiceInstanceId> {
        std::mem::take(&mut self.changed.lock().expect("nothing panics while it holds the set"))
    }

    fn acknowledge(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.descriptor, &mut count);
    }
}

/// One worker.
pub(super) struct Worker {
    tools: Tools,
    tcp: Tcp,
    udp: Udp,
    waker: Arc<Waker>,
    commands: Receiver<Command>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        desks: Desks,
        waker: Arc<Waker>,
        commands: Receiver<Command>,
        held: bool,
    ) -> io::Result<Self> {
        let tools = Tools::new(shared, desks, held)?;
        tools.register(&waker.descriptor, Token::Wake, epoll::EventFlags::IN)?;
        Ok(Self { tools, tcp: Tcp::default(), udp: Udp::default(), waker, commands })
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS_PER_TURN];
        let mut bulk_only = false;
        loop {
            let timeout = self.patience();
            if bulk_only && !self.tcp.has_more() {
                // Whoever else wants the core has it first. Bulk gathers meanwhile: it is carried in fewer and larger
                // pieces, and neither those that make it nor those that take it are interrupted for each.
                thread::yield_now();
            }
            let taken = match epoll::wait(&self.tools.epoll, &mut events, timeout.as_ref()) {
                Ok((taken, _)) => taken,
                Err(Errno::INTR) => continue,
                Err(error) => unreachable!("epoll_wait fails only for descriptors that are none: {error}"),
            };
            let Self { tools, tcp, udp, .. } = &mut self;
            tools.now = tools.shared.clock.now();
            let (mut woken, mut bulk) = (false, 0);
            for event in taken.iter() {
                let (flags, data) = (event.flags, event.data);
                match Token::unpack(data.u64()) {
                    Token::Wake => woken = true,
                    Token::Accept(port, address) => tcp.accept(port, address, tools),
                    Token::Client(key) => bulk += usize::from(tcp.ready(key, Side::Client, flags, tools)),
                    Token::Backend(key) => bulk += usize::from(tcp.ready(key, Side::Backend, flags, tools)),
                    Token::Datagrams(port, address) => udp.receive(port, address, tools),
                    Token::Upstream(key) => udp.receive_answers(key, tools),
                }
            }
            udp.finish_turn(tools);
            bulk_only = tcp.resume(tools) && bulk == taken.len();
            while let Some(token) = tools.timers.take_due(tools.now) {
                match token {
                    Token::Accept(port, _) => tcp.accept_again(port, tools),
                    Token::Client(key) => tcp.due(key, tools),
                    Token::Datagrams(port, _) => udp.due(port, tools),
                    Token::Wake | Token::Backend(_) | Token::Upstream(_) => unreachable!("{token:?} has no timer"),
                }
            }
            if woken && self.obey() {
                return;
            }
        }
    }

    /// How long to wait for events: not at all when there is work left, else until the next timer.
    fn patience(&self) -> Option<Timespec> {
        let until = if self.tcp.has_more() { self.tools.now } else { self.tools.timers.next()? };
        // Counted from this turn's time: a timer is late by the turn at most, and the clock is read once a turn. Whole
        // milliseconds, rounded up: a timer that is looked at too early would be looked at again and again.
        let wait = until.saturating_duration_since(self.tools.now);
        let milliseconds =
            i64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
        Some(Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 })
    }

    /// Does what the reconciler and changed backends ask for. Returns whether to stop.
    fn obey(&mut self) -> bool {
        self.waker.acknowledge();
        let Self { tools, tcp, udp, .. } = self;
        for handed in tools.desks.take_handed() {
            tcp.adopt(handed, tools);
        }
        for id in self.waker.take_changed() {
            tcp.follow_backends(&id, tools);
            udp.follow_backends(&id, tools);
        }
        let waker = &self.waker;
        let read_letters = |udp: &mut Udp, tools: &mut Tools| {
            waker.mailbox.take().into_iter().for_each(|letter| udp.take_letter(letter, tools));
        };
        read_letters(udp, tools);
        loop {
            match self.commands.try_recv() {
                Ok(Command::OpenTcp(listener, sockets)) => tcp.open(listener, sockets, tools),
                Ok(Command::OpenUdp(listener, sockets)) => {
                    udp.open(listener, sockets, tools);
                }
                Ok(Command::ShareOut(id, sockets, share)) => udp.share_out(&id, sockets, share, tools),
                Ok(Command::Close(id, Transport::Tcp, why)) => tcp.close(&id, why, tools),
                Ok(Command::Close(id, Transport::Udp, why)) => udp.close(&id, why, tools),
                Ok(Command::Refresh(id)) => {
                    tcp.refresh(id.as_ref(), tools);
                    udp.refresh(id.as_ref(), tools);
                }
                Ok(Command::CloseListeners) => {
                    tcp.close_listeners(tools);
                    udp.set_accepting(false);
                }
                Ok(Command::ReopenListeners) => udp.set_accepting(true),
                Ok(Command::EndFlows) => {
                    tcp.end_all(ConnectionEnd::Drained, tools);
                    udp.end_all(SessionEnd::Drained, tools);
                }
                Ok(Command::Hold) => {
                    tools.held = true;
                    tcp.hold(tools);
                    udp.hold(tools);
                }
                Ok(Command::GoOn) => {
                    if std::mem::take(&mut tools.held) {
                        tcp.go_on(tools);
                        udp.go_on(tools);
                    }
                }
                Ok(Command::LetGoOfUdp) => udp.let_go(tools),
                Ok(Command::Import(imports)) => udp.import(&imports, tools),
                Ok(Command::Barrier(barrier)) => {
                    // What was handed over before the barrier was asked for is before it.
                    read_letters(udp, tools);
                    drop(barrier);
                }
                Ok(Command::Export(sessions)) => {
                    let exported = udp.export();
                    // Who asked may have given up.
                    let _ = sessions.try_send(exported);
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    tcp.end_all(ConnectionEnd::Stopped, tools);
                    udp.end_all(SessionEnd::Stopped, tools);
                    return true;
                }
                Err(TryRecvError::Empty) => return false,
            }
        }
    }
}
