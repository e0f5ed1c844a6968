//! Random histories of three nodes: mostly requests that can change something, and one or two things that fail.

use std::time::Duration;

use fastrand::Rng;
use harbor::model::Transport;

use super::{
    link::Way,
    node::{GAMES, PORTS},
};

/// Nodes that share a store.
pub const NODES: usize = 3;

/// Service instances: most of the pool that all nodes serve, the last two of the other.
pub const INSTANCES: usize = 7;

/// The service instance that asks for this very port.
pub const CHOOSER: usize = 4;
pub const CHOSEN_PORT: u16 = *PORTS.start() + 3;

/// The first service instance of the second pool.
pub const FIRST_GAME: usize = 5;

/// Binding ids of each service instance.
const BINDINGS: usize = 2;

/// One request in so many is made whether or not it can change anything: for what is gone, or there already.
const ASTRAY_ONE_IN: usize = 8;

/// What happens, or is asked of a node.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Ask { node: usize, request: Request },
    Kill { node: usize },
    Start { node: usize },
    CutOff { node: usize, way: Way },
    Heal { node: usize },
    Drain { node: usize, asked: usize },
    Resume { node: usize, asked: usize },
    RestartDatabase { down: Duration },
    StrangersCome { node: usize, first: u16, last: u16, transport: Transport },
    StrangersLeave { node: usize },
    Ail { node: usize, ails: bool },
}

/// What a platform asks for.
#[derive(Debug, Clone, Copy)]
pub enum Request {
    Provision { instance: usize, later: bool },
    Deprovision { instance: usize },
    Bind { instance: usize, binding: usize },
    Unbind { instance: usize, binding: usize },
    Update { instance: usize, both: bool },
}

impl Request {
    /// In a word.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Provision { .. } => "provision",
            Self::Deprovision { .. } => "deprovision",
            Self::Bind { .. } => "bind",
            Self::Unbind { .. } => "unbind",
            Self::Update { .. } => "update",
        }
    }

    /// The service instance that it is about.
    pub fn instance(self) -> usize {
        match self {
            Self::Provision { instance, .. }
            | Self::Deprovision { instance }
            | Self::Bind { instance, .. }
            | Self::Unbind { instance, .. }
            | Self::Update { instance, .. } => instance,
        }
    }
}

/// What users take to be there, by what they were told.
pub trait Beliefs {
    fn has_instance(&self, instance: usize) -> bool;
    fn has_binding(&self, instance: usize, binding: usize) -> bool;
}

/// What fails until it is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Dead,
    CutOff,
    Drained,
    Strangers,
    Ailing,
}

/// What is to happen next, whatever else is drawn.
#[derive(Debug, Clone, Copy)]
enum Sequel {
    /// Somebody asks another node about the same service instance.
    Rival { node: usize, instance: usize },
    /// The node that was asked dies.
    Death { node: usize },
}

/// Draws the steps of a history, one after the other.
pub struct Author {
    random: Rng,
    longest_gap: Duration,
    /// How many steps in a hundred make or mend trouble.
    unrest: u8,
    troubles: Vec<(Trouble, usize)>,
    sequel: Option<Sequel>,
    /// How long nobody asks for anything.
    pause: Duration,
}

impl Author {
    pub fn new(mut random: Rng, longest_gap: Duration) -> Self {
        let unrest = *random.choice(&[14, 30, 40]).unwrap();
        Self { random, longest_gap, unrest, troubles: Vec::new(), sequel: None, pause: Duration::ZERO }
    }

    /// The next step, and how long after the one before it comes.
    pub fn next(&mut self, beliefs: &impl Beliefs) -> (Duration, Step) {
        match self.sequel.take() {
            Some(Sequel::Rival { node, instance }) => {
                let node = (node + self.random.usize(1..NODES)) % NODES;
                // While ports may have to be moved, many are curious.
                if self.has_strangers() && self.random.bool() {
                    self.sequel = Some(Sequel::Rival { node, instance });
                }
                (self.moment(), Step::Ask { node, request: self.request_about(instance, beliefs) })
            }
            Some(Sequel::Death { node }) if !self.troubles.contains(&(Trouble::Dead, node)) => {
                self.troubles.push((Trouble::Dead, node));
                (self.moment(), Step::Kill { node })
            }
            _ if self.random.u8(..100) < self.unrest => (self.gap(), self.event()),
            _ => (self.gap() + std::mem::take(&mut self.pause), self.ask(beliefs)),
        }
    }

    /// Mostly next to nothing, so that steps meet; at times long enough for what others wait for.
    fn gap(&mut self) -> Duration {
        match self.random.u8(..16) {
            0..13 => self.moment(),
            13..15 => self.longest_gap.mul_f64(self.random.f64() / 5.0),
            _ => self.longest_gap.mul_f64(self.random.f64()),
        }
    }

    fn moment(&mut self) -> Duration {
        if self.random.u8(..3) == 0 { Duration::ZERO } else { self.longest_gap.mul_f64(self.random.f64() / 20.0) }
    }

    /// The more is in trouble, the likelier it is that something is mended.
    fn event(&mut self) -> Step {
        if self.random.usize(..2) < self.troubles.len() {
            let (trouble, node) = self.troubles.swap_remove(self.random.usize(..self.troubles.len()));
            return self.end(trouble, node);
        }
        let trouble = match self.random.u8(..100) {
            0..24 => return self.restart_database(),
            24..38 => Trouble::Dead,
            38..66 => Trouble::CutOff,
            66..75 => Trouble::Drained,
            75..97 => Trouble::Strangers,
            _ => Trouble::Ailing,
        };
        let well = (0..NODES).filter(|node| !self.troubles.contains(&(trouble, *node))).collect::<Vec<_>>();
        match self.random.choice(well) {
            Some(node) => {
                self.troubles.push((trouble, node));
                self.begin(trouble, node)
            }
            None => {
                self.troubles.retain(|known| *known != (trouble, 0));
                self.end(trouble, 0)
            }
        }
    }

    /// Mostly while there is little to do: otherwise every other request would meet it.
    fn restart_database(&mut self) -> Step {
        let down = Duration::from_millis(self.random.u64(50..1_000));
        if self.random.u8(..4) > 0 {
            self.pause = down;
        }
        Step::RestartDatabase { down }
    }

    fn begin(&mut self, trouble: Trouble, node: usize) -> Step {
        match trouble {
            Trouble::Dead => Step::Kill { node },
            Trouble::CutOff => Step::CutOff { node, way: if self.random.bool() { Way::Refused } else { Way::Silent } },
            Trouble::Drained => Step::Drain { node, asked: self.random.usize(..NODES) },
            Trouble::Strangers => {
                let ports = if self.random.u8(..4) == 0 { GAMES } else { PORTS };
                let (one, other) = (self.random.u16(ports.clone()), self.random.u16(ports));
                let transport = if self.random.u8(..4) == 0 { Transport::Udp } else { Transport::Tcp };
                Step::StrangersCome { node, first: one.min(other), last: one.max(other), transport }
            }
            Trouble::Ailing => Step::Ail { node, ails: true },
        }
    }

    fn end(&mut self, trouble: Trouble, node: usize) -> Step {
        match trouble {
            Trouble::Dead => Step::Start { node },
            Trouble::CutOff => Step::Heal { node },
            Trouble::Drained => Step::Resume { node, asked: self.random.usize(..NODES) },
            Trouble::Strangers => Step::StrangersLeave { node },
            Trouble::Ailing => Step::Ail { node, ails: false },
        }
    }

    /// A request of a node that works, as a rule, and at times what follows it at once.
    fn ask(&mut self, beliefs: &impl Beliefs) -> Step {
        let works = |node: &usize| {
            !self.troubles.iter().any(|(trouble, at)| at == node && matches!(trouble, Trouble::Dead | Trouble::CutOff))
        };
        let working = (0..NODES).filter(works).collect::<Vec<_>>();
        let node = self.random.choice(working).unwrap_or(0);
        let node = if self.random.usize(..ASTRAY_ONE_IN) == 0 { self.random.usize(..NODES) } else { node };
        let request = match self.random.u8(..100) {
            0..24 => self.provision(beliefs),
            24..38 => self.instance(true, beliefs).map(|instance| Request::Deprovision { instance }),
            38..58 => self.instance(true, beliefs).map(|instance| self.bind(instance, beliefs)),
            58..80 => self.unbind(beliefs),
            _ => self.instance(true, beliefs).map(|instance| self.update(instance)),
        };
        // Where there is none yet one is made, and where there are all one goes.
        let request = request.or_else(|| self.provision(beliefs));
        let request = request.unwrap_or(Request::Deprovision { instance: self.random.usize(..INSTANCES) });
        self.sequel = match (self.random.u8(..64), request) {
            (0..12, _) => Some(Sequel::Rival { node, instance: request.instance() }),
            (12..24, Request::Provision { later: true, .. }) => Some(Sequel::Death { node }),
            (24..52, Request::Provision { instance, .. }) if self.has_strangers() => {
                Some(Sequel::Rival { node, instance })
            }
            _ => None,
        };
        Step::Ask { node, request }
    }

    /// What else may be asked about a service instance while something is asked about it.
    fn request_about(&mut self, instance: usize, beliefs: &impl Beliefs) -> Request {
        match self.random.u8(..9) {
            0..2 => Request::Provision { instance, later: self.random.bool() },
            2..4 => Request::Deprovision { instance },
            4..7 => self.bind(instance, beliefs),
            7 => self.update(instance),
            _ => Request::Unbind { instance, binding: self.random.usize(..BINDINGS) },
        }
    }

    fn has_strangers(&self) -> bool {
        self.troubles.iter().any(|(trouble, _)| *trouble == Trouble::Strangers)
    }

    fn provision(&mut self, beliefs: &impl Beliefs) -> Option<Request> {
        let later = self.random.u8(..5) < 2;
        self.instance(false, beliefs).map(|instance| Request::Provision { instance, later })
    }

    fn update(&mut self, instance: usize) -> Request {
        Request::Update { instance, both: self.random.bool() }
    }

    /// A new binding as long as there are ids.
    fn bind(&mut self, instance: usize, beliefs: &impl Beliefs) -> Request {
        let new = (0..BINDINGS).filter(|binding| !beliefs.has_binding(instance, *binding)).collect::<Vec<_>>();
        let binding = self.random.choice(new).unwrap_or_else(|| self.random.usize(..BINDINGS));
        Request::Bind { instance, binding }
    }

    fn unbind(&mut self, beliefs: &impl Beliefs) -> Option<Request> {
        let all = (0..INSTANCES).flat_map(|instance| (0..BINDINGS).map(move |binding| (instance, binding)));
        let astray = self.random.usize(..ASTRAY_ONE_IN) == 0;
        let fit = all.filter(|(instance, binding)| astray || beliefs.has_binding(*instance, *binding));
        let chosen = self.random.choice(fit.collect::<Vec<_>>());
        chosen.map(|(instance, binding)| Request::Unbind { instance, binding })
    }

    /// A service instance that is there, or that is not.
    fn instance(&mut self, is_there: bool, beliefs: &impl Beliefs) -> Option<usize> {
        let astray = self.random.usize(..ASTRAY_ONE_IN) == 0;
        let fit = (0..INSTANCES).filter(|instance| astray || beliefs.has_instance(*instance) == is_there);
        self.random.choice(fit.collect::<Vec<_>>())
    }
}
