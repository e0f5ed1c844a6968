//! Three nodes that hear the same announcers at other times, in another order and by other clocks, are cut off and start
//! anew: in the end all have the same primaries in the same order.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use fastrand::Rng;
use harbor::{
    discovery::source::{Action, Source},
    model::{ServiceInstanceId, Timestamp},
};
use serde_json::json;

use crate::{
    announcements::{Bindings, Real, TRUSTED},
    seeds::{STEPS, run, weighted},
};

const NODES: usize = 3;

/// Of the service instance `udp-one`; as many as it may have.
const PORTS: [u16; 5] = [4001, 4002, 4003, 4004, 4005];

/// Words of nodes that follow from one announcement to all, at the most; what needs more goes in circles.
const MOST_WORDS: usize = 30;

/// What one node has not yet heard.
#[derive(Debug, Clone)]
enum Word {
    /// With the time that it states, if it does.
    Announcement(u16, Action, Option<Timestamp>),
    OfNode(usize, Bytes),
}

impl Word {
    /// Whether NATS keeps the two in order.
    fn has_speaker_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Announcement(a, ..), Self::Announcement(b, ..)) => a == b,
            (Self::OfNode(a, _), Self::OfNode(b, _)) => a == b,
            _ => false,
        }
    }
}

struct Node {
    real: Real,
    /// None while it is cut off.
    waiting: Option<Vec<Word>>,
}

impl Node {
    /// Its clock may be wrong by a few seconds.
    fn new(random: &mut Rng, now: Timestamp) -> Self {
        let real = Real::new(&Bindings::new());
        real.clock.wall_micros.store(now.0 + random.i64(-3_000_000..3_000_000), Ordering::Relaxed);
        real.discovery.nats_is_back();
        Self { real, waiting: Some(Vec::new()) }
    }

    fn hear(&mut self, word: Word) {
        match word {
            Word::Announcement(port, action, since) => {
                let message = json!({"host": TRUSTED, "port": port, "harbor": {
                    "instance_id": "udp-one", "since": since.map(|at| at.0)}});
                self.real.discovery.receive(Source::Harbor, action, message.to_string().as_bytes());
            }
            Word::OfNode(_, payload) => {
                self.real.discovery.hear_seniority(&payload).expect("nodes write what they can read")
            }
        }
    }

    /// The backends that are still announced, in order.
    fn primaries(&self, announced: &[u16]) -> Vec<(u16, Timestamp)> {
        let all = self.real.backends.list(&ServiceInstanceId::new("udp-one").unwrap());
        let each = all.iter().map(|state| (state.backend.endpoint.address.port(), state.since));
        each.filter(|(port, _)| announced.contains(port)).collect()
    }
}

/// All nodes, and who announces itself.
struct Bus {
    nodes: Vec<Node>,
    announced: Vec<u16>,
    now: Timestamp,
}

impl Bus {
    /// Brings a word on its way to all but who says it.
    fn say(&mut self, by: Option<usize>, word: &Word) {
        let others = self.nodes.iter_mut().enumerate().filter(|(at, _)| Some(*at) != by);
        others.filter_map(|(_, node)| node.waiting.as_mut()).for_each(|waiting| waiting.push(word.clone()));
    }

    /// Has one who announces itself do so, most often without a time.
    fn announce(&mut self, random: &mut Rng, port: u16) {
        let since = (random.u32(..8) == 0).then(|| Timestamp(self.now.0 - random.i64(0..100_000_000)));
        self.say(None, &Word::Announcement(port, Action::Register, since));
    }

    /// Has a node say what it has to say. Returns how many words that were.
    fn let_speak(&mut self, at: usize) -> usize {
        let words = self.nodes[at].real.discovery.seniority();
        words.iter().for_each(|word| self.say(Some(at), &Word::OfNode(at, word.clone())));
        words.len()
    }

    /// Has a node hear one word: of whoever's comes first. Returns whether there was one.
    fn let_hear(&mut self, random: &mut Rng, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let Some(waiting) = node.waiting.as_mut().filter(|waiting| !waiting.is_empty()) else { return false };
        let speaker = random.choice(waiting.iter()).expect("there are some");
        let at = waiting.iter().position(|word| word.has_speaker_of(speaker)).expect("one is there");
        let word = waiting.remove(at);
        node.real.clock.wall_micros.fetch_add(random.i64(1..1000), Ordering::Relaxed);
        node.hear(word);
        true
    }

    fn announce_all(&mut self, random: &mut Rng) {
        self.announced.clone().into_iter().for_each(|port| self.announce(random, port));
    }

    /// Has all hear and speak until nobody has anything to say.
    fn settle(&mut self, random: &mut Rng) {
        let mut words = 0;
        loop {
            while (0..NODES).any(|at| self.let_hear(random, at)) {}
            let said = (0..NODES).map(|at| self.let_speak(at)).sum::<usize>();
            words += said;
            assert!(words <= MOST_WORDS, "nodes talk without end");
            if said == 0 {
                break;
            }
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.plus(std::time::Duration::from_secs(seconds));
        for node in &self.nodes {
            node.real.clock.wait(seconds);
            node.real.discovery.sweep();
        }
    }

    fn cut_off(&mut self, at: usize) {
        self.nodes[at].waiting = None;
        self.nodes[at].real.discovery.nats_is_away();
    }

    fn find(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.waiting.is_none() {
            node.waiting = Some(Vec::new());
            node.real.discovery.nats_is_back();
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Announce,
    Withdraw,
    Hear,
    Speak,
    Wait,
    CutOff,
    Find,
    StartAnew,
}

const LIKELIHOODS: [(u32, Step); 8] = [
    (30, Step::Announce),
    (2, Step::Withdraw),
    (60, Step::Hear),
    (20, Step::Speak),
    (6, Step::Wait),
    (6, Step::CutOff),
    (6, Step::Find),
    (2, Step::StartAnew),
];

#[test]
fn all_nodes_end_with_the_primaries_in_one_order() {
    run(|mut random| simulate(&mut random));
}

fn simulate(random: &mut Rng) {
    let now = Timestamp::from_seconds(1_700_000_000);
    let nodes = (0..NODES).map(|_| Node::new(random, now)).collect();
    let mut bus = Bus { nodes, announced: Vec::new(), now };
    for _ in 0..STEPS / 8 {
        let (at, port) = (random.usize(..NODES), *random.choice(&PORTS).expect("there are some"));
        match weighted(random, &LIKELIHOODS) {
            Step::Announce => {
                bus.announced.retain(|other| *other != port);
                bus.announced.push(port);
                bus.announce(random, port);
            }
            Step::Withdraw => {
                bus.announced.retain(|other| *other != port);
                bus.say(None, &Word::Announcement(port, Action::Unregister, None));
            }
            Step::Hear => {
                bus.let_hear(random, at);
            }
            Step::Speak => {
                bus.let_speak(at);
            }
            Step::Wait => bus.wait(*random.choice(&[1, 20, 130]).expect("there are some")),
            Step::CutOff => bus.cut_off(at),
            Step::Find => bus.find(at),
            Step::StartAnew => bus.nodes[at] = Node::new(random, bus.now),
        }
    }
    if random.bool() {
        // One has been cut off while the others forgot everybody and heard them anew.
        let at = random.usize(..NODES);
        bus.cut_off(at);
        bus.wait(130);
        bus.announce_all(random);
        bus.settle(random);
    }
    // All hear one another, and who announces itself does so once more.
    (0..NODES).for_each(|at| bus.find(at));
    bus.announce_all(random);
    bus.settle(random);
    let orders = bus.nodes.iter().map(|node| node.primaries(&bus.announced)).collect::<Vec<_>>();
    assert_eq!(orders[0].len(), bus.announced.len(), "all who announce themselves are known");
    assert!(orders.iter().all(|order| *order == orders[0]), "{orders:#?}");
}
